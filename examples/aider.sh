#!/usr/bin/env bash
# Let aider finish one turn against a running server, without a terminal.
# It works in a temporary repository and prints what became of the file.
#
#     python3.12 -m venv aider-venv && aider-venv/bin/pip install aider-chat
#     PATH="$PWD/aider-venv/bin:$PATH" examples/aider.sh
#
# MLX_SERVER_URL: the server (default http://127.0.0.1:8080)
# MODEL: the model's name in the request (default: the first that the server lists)
set -euo pipefail
url="${MLX_SERVER_URL:-http://127.0.0.1:8080}"
model="${MODEL:-$(curl --silent --show-error --fail "$url/v1/models" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
printf 'print("Helo, world!")\n' >hello.py
git init --quiet
git -c user.name=example -c user.email=example@localhost add hello.py
git -c user.name=example -c user.email=example@localhost commit --quiet -m "Say hello"

export OPENAI_API_BASE="$url/v1" OPENAI_API_KEY="${OPENAI_API_KEY:-sk-local}"
export LITELLM_LOCAL_MODEL_COST_MAP=True
export GIT_AUTHOR_NAME=example GIT_AUTHOR_EMAIL=example@localhost
export GIT_COMMITTER_NAME=example GIT_COMMITTER_EMAIL=example@localhost
aider --model "openai/$model" --edit-format "${EDIT_FORMAT:-diff}" \
    --yes-always --no-check-update --no-show-model-warnings --no-show-release-notes \
    --analytics-disable --no-detect-urls --no-suggest-shell-commands --no-pretty \
    --no-fancy-input --no-auto-lint --no-gitignore --map-tokens 0 \
    --message "Fix the typo in hello.py" hello.py </dev/null

# aider exits 0 whatever happened: the file tells.
echo "--- hello.py"
cat hello.py
