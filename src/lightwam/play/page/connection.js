// The websocket: parts of the server's board arrive, commands leave. What was drawn is acknowledged, so that the server
// sends the newest of everything as fast as this page can draw, and no faster.
const parts = {};
const drawers = {};  // name of a part, or its beginning with a slash -> function of its value and name
const server = {id: null, wasAway: false, seconds: 0.5, socket: null};

function send(command) {
  if (server.socket?.readyState === WebSocket.OPEN) server.socket.send(JSON.stringify(command));
}

function connect() {
  const address = new URL('live', location.href.split('#')[0]);
  address.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
  const socket = server.socket = new WebSocket(address);
  socket.binaryType = 'arraybuffer';
  let draws = Promise.resolve();
  socket.onopen = () => socket.send(JSON.stringify({key: sessionStorage.getItem('key') ?? ''}));
  socket.onmessage = ({data}) => {
    if (typeof data === 'string') return showRefusal(JSON.parse(data).refused);
    draws = draws.then(() => take(data)).then(() => socket.readyState === WebSocket.OPEN && socket.send('seen'));
  };
  socket.onclose = ({code, reason}) => {
    if (code === 1008) return askForKey();
    server.wasAway = true;
    showConnection(reason ? `not connected: ${reason}` : 'The server is away; trying again.', true);
    setTimeout(connect, 1000 * server.seconds);
    server.seconds = Math.min(5, 1.5 * server.seconds);
  };
}

async function take(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const news = [];
  for (const [name, kind, size] of header) {
    const body = new Uint8Array(buffer, at, size);
    at += size;
    news.push([name, kind === 'json' ? JSON.parse(new TextDecoder().decode(body)) : createImageBitmap(new Blob([body], {type: 'image/jpeg'}))]);
  }
  for (const [name, value] of news) parts[name] = await value;
  if ('server' in Object.fromEntries(news)) meetServer();
  for (const [name] of news) (drawers[name] ?? drawers[name.split('/')[0] + '/'])?.(parts[name], name);
}

function meetServer() {
  server.seconds = 0.5;
  if (server.id && server.id !== parts.server) notify('The server was started again: this is a new session.');
  server.id = parts.server;
  server.wasAway = false;
}

function draw(canvas, picture) {
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.classList.toggle('small', picture.height < 64);
  }
  canvas.getContext('2d').drawImage(picture, 0, 0);
}
