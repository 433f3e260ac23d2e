"""Which of some sentences is nearest to a question, by their embeddings (pip install openai).

MLX_SERVER_URL=http://127.0.0.1:8080 python examples/embeddings.py "Which port does it listen on?"

Any model gives vectors; one that was made for it gives good ones.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

SENTENCES = (
    "The server listens on port 8080 unless --port says otherwise.",
    "Adapters are loaded with --lora.",
    "A prompt that is too long is answered with status 400.",
)


def main() -> None:
    url = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "not-needed"))
    question = sys.argv[1] if len(sys.argv) > 1 else "Which port does it listen on?"
    found = client.embeddings.create(model="default_model", input=[question, *SENTENCES])
    asked, *others = (item.embedding for item in found.data)
    for sentence, vector in zip(SENTENCES, others, strict=True):
        # They have length 1, so this is the cosine of the angle between them.
        likeness = sum(a * b for a, b in zip(asked, vector, strict=True))
        print(f"{likeness:.3f}  {sentence}")
    print(f"{len(asked)} numbers each, {found.usage.prompt_tokens} tokens in all")


if __name__ == "__main__":
    main()
