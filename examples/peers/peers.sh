#!/usr/bin/env bash
# LeRobot's policies beside lightwam's, trained on the same demonstrations: one command a row (README.md).
#   peers.sh data                                         the demo's 810 demonstrations
#   peers.sh lightwam [STEPS]                             train and evaluate the demo's policy
#   peers.sh act|act-short|diffusion STEPS SAVE_EVERY     train a policy of LeRobot's
#   peers.sh evaluate NAME CHECKPOINT REPLAN              of a policy of LeRobot's: evaluate act 000150 8
#   peers.sh latency NAME=PATH ...                        a chunk's time and the memory, side by side
# LIGHTWAM: bin/ of an environment with lightwam and Meta-World. LEROBOT: of one with LeRobot and its plugin (make lerobot).
set -euo pipefail
here=$(dirname "$0")
LIGHTWAM=${LIGHTWAM:-.venv/bin} LEROBOT=${LEROBOT:-.venv-lerobot/bin} OUT=${OUT:-runs/peers} DATASET=${DATASET:-$OUT/dataset}
TRIALS=${TRIALS:-20} PORT=${PORT:-8150}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
mkdir -p "$OUT"

# clocked NAME COMMAND...: OUT/NAME.log has what it prints, each line with the processor seconds used until then.
clocked() { "$LIGHTWAM/python" "$here/cpu_clock.py" "${@:2}" | tee "$OUT/$1.log"; }

# train NAME STEPS SAVE_EVERY OPTIONS...: by LeRobot's command. Nothing is downloaded: the ResNet-18 starts from random weights.
train() {
  clocked "$1" "$LEROBOT/lerobot-train" --policy.push_to_hub=false --policy.device=cpu \
    --policy.pretrained_backbone_weights=null --dataset.repo_id=local/demo --dataset.root="$DATASET" \
    --dataset.video_backend=pyav --num_workers=0 --env_eval_freq=0 --wandb.enable=false --log_freq=10 \
    --output_dir="$OUT/$1" --steps="$2" --save_freq="$3" "${@:4}"
}

# evaluate NAME CHECKPOINT REPLAN [OVERRIDES...]: serve a checkpoint, and evaluate it on seeds that no demonstration has.
evaluate() {
  local label=$1-$2-replan$3
  "$LEROBOT/lightwam-serve-lerobot" "$OUT/$1/checkpoints/$2" --port "$PORT" --xpolicylab-port None --device cpu \
    ${4:+--overrides "${@:4}"} 2> "$OUT/$label.log" &
  trap "kill $!" EXIT
  until curl --silent --fail "http://127.0.0.1:$PORT/healthz" > /dev/null; do
    kill -0 $! || { cat "$OUT/$label.log" >&2; exit 1; }
    sleep 1
  done
  "$LIGHTWAM/lightwam" eval "ws://127.0.0.1:$PORT" demo --robot-schema light-wam --run "$OUT/$label" --label "$label" \
    --eval.replan "$3" --eval.trials "$TRIALS" --eval.workers 1 --eval.videos-per-task 0
}

case ${1:-} in
  data) "$LIGHTWAM/lightwam" collect demo --dataset "$DATASET" ;;
  lightwam)
    name=lightwam-${2:-1900}
    clocked "$name" "$LIGHTWAM/lightwam" train demo --dataset "$DATASET" --run "$OUT/$name" --train.steps "${2:-1900}"
    "$LIGHTWAM/lightwam" eval "$OUT/$name" --eval.trials "$TRIALS" --eval.workers 1 --eval.videos-per-task 0
    ;;
  act) train act "${@:2:2}" --policy.type=act ;; # LeRobot's own settings
  act-short) # for episodes of 20 steps and a short training
    train act-short "${@:2:2}" --policy.type=act --policy.chunk_size=16 --policy.n_action_steps=8 --policy.dim_model=256 \
      --policy.dim_feedforward=512 --policy.use_vae=false --policy.optimizer_lr=1e-4 --policy.optimizer_lr_backbone=1e-4
    ;;
  diffusion) train diffusion "${@:2:2}" --policy.type=diffusion ;; # LeRobot's own settings
  evaluate) evaluate "${@:2}" ;;
  latency) "$LEROBOT/python" "$here/latency.py" "${@:2}" ;;
  *) sed --quiet '/^#   /p' "$0" >&2; exit 2 ;;
esac
