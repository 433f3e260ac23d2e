"""Several streams at once: they share each step of the model (pip install openai).

MLX_SERVER_URL=http://127.0.0.1:8080 python examples/streaming.py
"""

from __future__ import annotations

import asyncio
import os
import time

from openai import AsyncOpenAI

QUESTIONS = (
    "Hello",
    "What is mlx_server?",
    "How do I stop the server?",
    "What is continuous batching?",
    "Count to ten",
    "Tell me a joke",
)


async def ask(client: AsyncOpenAI, question: str, seed: int) -> int:
    """Print the reply when it is complete; the number of chunks it came in."""
    stream = await client.chat.completions.create(
        model="default_model",
        messages=[{"role": "user", "content": question}],
        temperature=0.7,
        seed=seed,
        stream=True,
    )
    pieces = [c.delta.content or "" async for chunk in stream for c in chunk.choices]
    print(f"> {question}\n{''.join(pieces)}\n")
    return len(pieces)


async def main() -> None:
    url = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
    key = os.environ.get("OPENAI_API_KEY", "not-needed")
    start = time.perf_counter()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
        counts = await asyncio.gather(*(ask(client, q, i) for i, q in enumerate(QUESTIONS)))
    seconds = time.perf_counter() - start
    print(f"{sum(counts)} chunks in {len(QUESTIONS)} streams, {seconds:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
