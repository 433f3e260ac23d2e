"""Talk to a running server with the official Python client (pip install openai).

MLX_SERVER_URL=http://127.0.0.1:8080 python examples/openai_client.py "Hello"
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main() -> None:
    url = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
    question = sys.argv[1] if len(sys.argv) > 1 else "Hello"
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "not-needed"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": question}]
    print(f"model: {model}")

    print("\n# whole reply")
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0)
    print(reply.choices[0].message.content)
    print(f"{reply.usage.prompt_tokens} + {reply.usage.completion_tokens} tokens")

    print("\n# the same, streamed")
    stream = client.chat.completions.create(
        model=model, messages=messages, temperature=0, stream=True
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()

    print("\n# log-probabilities of the first tokens, with the two best alternatives")
    reply = client.chat.completions.create(
        model=model, messages=messages, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    for token in reply.choices[0].logprobs.content:
        best = ", ".join(f"{t.token!r} {t.logprob:.2f}" for t in token.top_logprobs)
        print(f"{token.token!r} {token.logprob:.2f}  ({best})")


if __name__ == "__main__":
    main()
