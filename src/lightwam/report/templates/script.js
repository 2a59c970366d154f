// Without this script the videos play and have their own controls; with it, one button controls all of them.
const videos = [...document.querySelectorAll('video')];
if (videos.length) {
  const button = document.createElement('button');
  let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
  const update = () => {
    videos.forEach(video => playing ? video.play().catch(() => video.controls = true) : video.pause());
    button.textContent = playing ? 'Pause all videos' : 'Play all videos';
  };
  button.onclick = () => { playing = !playing; update(); };
  videos.forEach(video => {
    video.controls = false;
    video.onclick = () => video.paused ? video.play() : video.pause();
  });
  document.querySelector('#rollouts .tasks').before(button);
  update();
}
addEventListener('beforeprint', () => document.querySelectorAll('details.settings').forEach(part => part.open = true));
