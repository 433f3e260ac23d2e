"""One question to the base model and to adapters, all at once (pip install openai).

Start the server with named adapters, and give their names:

    mlx_server --model MODEL --lora poet=PATH --lora lawyer=PATH
    python examples/adapters.py "Describe the sea." poet lawyer
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: adapters.py QUESTION ADAPTER [ADAPTER ...]")
    url = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "not-needed"))
    question, *adapters = sys.argv[1:]
    # The server would answer an unknown name with the base model.
    known = {model.id for model in client.models.list()}
    if unknown := [name for name in adapters if name not in known]:
        sys.exit(f"the server has no {', '.join(unknown)}; it lists {', '.join(sorted(known))}")

    def ask(model: str) -> str:
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=200,
            temperature=0,
        )
        return reply.choices[0].message.content or ""

    models = ["default_model", *adapters]
    with ThreadPoolExecutor(len(models)) as threads:
        for model, text in zip(models, threads.map(ask, models), strict=True):
            print(f"# {model}\n{text}\n")


if __name__ == "__main__":
    main()
