#!/usr/bin/env bash
# Serves a model with attention sinks, from the environment that env.py built.
#
#   deploy/local/serve.sh [MODEL] [flags of `vllm serve`]
#
# PORT and HOST say where. Flags after MODEL override those chosen here:
#   deploy/local/serve.sh models/smollm2-135m-instruct --window-tokens 1024 --sink-tokens 8
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=$root/.venv${VLLM_SINK_VLLM:+-$VLLM_SINK_VLLM}/bin/python
model=${1:-$root/models/smollm2-135m-instruct}
shift || true
host=${HOST:-127.0.0.1}
port=${PORT:-8000}

[[ -x $python ]] || { echo "There is no environment yet: make env" >&2; exit 1; }

flags=(--kv-policy sink --host "$host" --port "$port")
if [[ -d $model ]]; then
    flags+=(--served-model-name "$(basename "$model")")
    export HF_HUB_OFFLINE=1 # everything to load is in the folder
fi
export VLLM_NO_USAGE_STATS=1
unset VLLM_SINK_VLLM VLLM_SINK_DEVICE # no longer needed, and vLLM warns of variables it does not know

device=$("$python" -c 'import torch; print("cuda" if torch.version.cuda and torch.cuda.is_available() else "cpu")')
if [[ $device == cpu ]]; then
    # vLLM would take most of the memory for KV. With the policy a stream needs little: of the small
    # model, 1 GiB holds 46,000 tokens.
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
    # Threads: vLLM takes all cores but one and binds to them; VLLM_CPU_OMP_THREADS_BIND and
    # OMP_NUM_THREADS change that.
    # Compiling takes minutes at each first start and speeds up a small model by next to nothing.
    flags+=(--enforce-eager)
    # Where oneDNN has no bfloat16 (x86 without AVX-512) it is hundreds of times slower than float32,
    # which takes twice the memory.
    if "$python" -c 'import sys, torch; sys.exit(not torch.ops.mkldnn._is_mkldnn_bf16_supported())'; then
        flags+=(--dtype bfloat16)
    else
        echo "[serve] This CPU has no bfloat16: float32 instead, KV takes twice the room."
        flags+=(--dtype float32)
    fi
fi

cat <<EOF
[serve] $model on $device, http://$host:$port
[serve] When it says "Application startup complete", in another terminal:

  curl -N http://$host:$port/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 300, "stream": true}'

EOF
# Not the `vllm` command: where .venv lies on top of a host's vLLM, that command is the host's.
exec "$python" -m vllm.entrypoints.cli.main serve "$model" "${flags[@]}" "$@"
