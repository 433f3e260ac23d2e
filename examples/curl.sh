#!/usr/bin/env bash
# Talk to a running server with curl: chats, plain, streamed, with a grammar and with a tool, and
# a completion.
#
#     MLX_SERVER_URL=http://127.0.0.1:8080 examples/curl.sh "Hello"
set -euo pipefail
url="${MLX_SERVER_URL:-http://127.0.0.1:8080}"
key="Authorization: Bearer ${OPENAI_API_KEY:-not-needed}"
question="${1:-Hello}"
# JSON-quote the question, whatever it contains.
quoted="$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$question")"

post() {
    curl --silent --show-error --fail-with-body --no-buffer \
        -H "$key" -H 'Content-Type: application/json' -d "$2" "$url$1"
    echo
}

echo "# models"
curl --silent --show-error --fail-with-body -H "$key" "$url/v1/models"
echo

echo "# chat"
post /v1/chat/completions "{\"messages\": [{\"role\": \"user\", \"content\": $quoted}]}"

echo "# streamed chat"
post /v1/chat/completions "{\"messages\": [{\"role\": \"user\", \"content\": $quoted}],
    \"temperature\": 0, \"stream\": true, \"stream_options\": {\"include_usage\": true}}"

echo "# completion"
post /v1/completions '{"prompt": "The server", "max_tokens": 12, "temperature": 0}'

echo "# a reply that follows a grammar"
post /v1/chat/completions "{\"messages\": [{\"role\": \"user\", \"content\": $quoted}],
    \"grammar\": \"root ::= (\\\"yes\\\" | \\\"no\\\") \\\", \\\" [a-z]{3,12} \\\".\\\"\"}"

echo "# a call"
post /v1/chat/completions "{\"messages\": [{\"role\": \"user\", \"content\": $quoted}],
    \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"greet\", \"parameters\":
        {\"properties\": {\"language\": {\"enum\": [\"en\", \"de\", \"fr\"]}},
         \"required\": [\"language\"]}}}],
    \"tool_choice\": \"required\", \"parallel_tool_calls\": false}"
