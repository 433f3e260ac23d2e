#!/usr/bin/env bash
# Let aider finish one turn against a running server, without a terminal.
# It works in a temporary repository and prints what became of the file.
#
#     python3.12 -m venv aider-venv && aider-venv/bin/pip install aider-chat
#     PATH="$PWD/aider-venv/bin:$PATH" examples/aider.sh
#
# MLX_SERVER_URL: the server (default http://127.0.0.1:8080)
# MODEL: the model's name in the request (default: the first that the server lists)
# GRAMMAR: a file with a grammar for the replies; with examples/edit.gbnf even the
#     bundled demo model writes an edit that aider can apply
set -euo pipefail
url="${MLX_SERVER_URL:-http://127.0.0.1:8080}"
key="${OPENAI_API_KEY:-sk-local}"
model="${MODEL:-$(curl --silent --show-error --fail -H "Authorization: Bearer $key" "$url/v1/models" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
options=()
if [[ -n "${GRAMMAR:-}" ]]; then
    # aider passes extra_params on with each request. Commit messages come from the "weak"
    # model; under a name of its own that has another grammar, and the same model answers.
    python3 - "$model" "$GRAMMAR" >"$work/settings.yml" <<'PYTHON'
import json, sys

def settings(name, **body):
    return {"name": f"openai/{name}", "extra_params": {"extra_body": body}}

with open(sys.argv[2]) as file:
    edit = settings(sys.argv[1], grammar=file.read())
commit = settings("commit", regex="Fix [a-z][a-z ]{8,30}[a-z]")
edit |= {"edit_format": "diff", "weak_model_name": commit["name"]}
json.dump([edit, commit], sys.stdout)  # which is YAML, too
PYTHON
    options+=(--model-settings-file "$work/settings.yml")
fi

mkdir "$work/repository"
cd "$work/repository"
printf 'print("Helo, world!")\n' >hello.py
git init --quiet
git -c user.name=example -c user.email=example@localhost add hello.py
git -c user.name=example -c user.email=example@localhost commit --quiet -m "Say hello"

export OPENAI_API_BASE="$url/v1" OPENAI_API_KEY="$key"
export LITELLM_LOCAL_MODEL_COST_MAP=True
export GIT_AUTHOR_NAME=example GIT_AUTHOR_EMAIL=example@localhost
export GIT_COMMITTER_NAME=example GIT_COMMITTER_EMAIL=example@localhost
aider --model "openai/$model" --edit-format "${EDIT_FORMAT:-diff}" \
    --yes-always --no-check-update --no-show-model-warnings --no-show-release-notes \
    --analytics-disable --no-detect-urls --no-suggest-shell-commands --no-pretty \
    --no-fancy-input --no-auto-lint --no-gitignore --map-tokens 0 \
    ${options[@]+"${options[@]}"} \
    --message "Fix the typo in hello.py" hello.py </dev/null

# aider exits 0 whatever happened: the file tells.
echo "--- hello.py"
cat hello.py
echo "--- commits"
git log --format=%s
