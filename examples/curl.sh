#!/usr/bin/env bash
# Talk to a running server with curl: a chat, a streamed chat, a completion.
#
#     MLX_SERVER_URL=http://127.0.0.1:8080 examples/curl.sh "Hello"
set -euo pipefail
url="${MLX_SERVER_URL:-http://127.0.0.1:8080}"
question="${1:-Hello}"
# JSON-quote the question, whatever it contains.
quoted="$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$question")"

post() {
    curl --silent --show-error --fail-with-body --no-buffer \
        -H 'Content-Type: application/json' -d "$2" "$url$1"
    echo
}

echo "# models"
curl --silent --show-error --fail-with-body "$url/v1/models"
echo

echo "# chat"
post /v1/chat/completions "{\"messages\": [{\"role\": \"user\", \"content\": $quoted}]}"

echo "# streamed chat"
post /v1/chat/completions "{\"messages\": [{\"role\": \"user\", \"content\": $quoted}],
    \"temperature\": 0, \"stream\": true, \"stream_options\": {\"include_usage\": true}}"

echo "# completion"
post /v1/completions '{"prompt": "The server", "max_tokens": 12, "temperature": 0}'
