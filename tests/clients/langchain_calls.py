"""What programs ask through langchain-openai: chat, streams, tools, structure, vectors."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from outcomes import MODEL, kind_of, tell
from pydantic import BaseModel

ASK = "Which is it?"


class Step(BaseModel):
    """A step to one side."""

    side: Literal["left", "right"]
    metres: Literal[1, 2, 3]


@tool
def weather(city: Literal["Bern", "Rome"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def chat(**fields: Any) -> ChatOpenAI:
    """The address and the key come from the environment, as users set them."""
    settings = {"model": MODEL, "temperature": 1, "seed": 3, "max_tokens": 80, "max_retries": 0}
    return ChatOpenAI(**settings | fields)


def forced() -> ChatOpenAI:
    return chat(extra_body={"regex": "(left|right) [0-9]{2}"})


def invoke() -> dict[str, Any]:
    reply = forced().invoke([("system", "Be brief."), ("human", ASK)])
    return {
        "text": reply.content,
        "reason": reply.response_metadata["finish_reason"],
        "model": reply.response_metadata["model_name"],
        "usage": reply.usage_metadata,
    }


def streamed() -> dict[str, Any]:
    """The sum of a seeded stream's chunks, and the same reply asked for whole."""
    model = chat(max_tokens=24, stream_usage=True, extra_body={"ignore_eos": True})
    chunks = list(model.stream(ASK))
    fold = chunks[0]
    for chunk in chunks[1:]:
        fold = fold + chunk
    whole = model.invoke(ASK)
    return {
        "chunks": len(chunks),
        "streamed": [fold.content, fold.response_metadata["finish_reason"]],
        "whole": [whole.content, whole.response_metadata["finish_reason"]],
        "tokens": [r.usage_metadata["output_tokens"] for r in (fold, whole)],
    }


def tools() -> dict[str, Any]:
    """A call, run here, and the answer once its result is there."""
    reply = chat().bind_tools([weather], tool_choice="any").invoke(ASK)
    (call,) = reply.tool_calls[:1]
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    reply.tool_calls = [call]
    answer = forced().bind_tools([weather], tool_choice="none")
    said = answer.invoke([HumanMessage(ASK), reply, result])
    return {"name": call["name"], "arguments": call["args"], "answer": said.content}


def streamed_tools() -> list[Any]:
    model = chat().bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    fold = None
    for chunk in model.stream(ASK):
        fold = chunk if fold is None else fold + chunk
    calls = [reply.tool_calls[0] for reply in (fold, model.invoke(ASK))]
    return [[call["name"], call["args"]] for call in calls]


def structured(method: str, **fields: Any) -> dict[str, Any]:
    return chat().with_structured_output(Step, method=method, **fields).invoke(ASK).model_dump()


def json_schema() -> dict[str, Any]:
    return structured("json_schema")


def json_schema_strict() -> dict[str, Any]:
    return structured("json_schema", strict=True)


def function_calling() -> dict[str, Any]:
    return structured("function_calling")


def batch() -> list[str]:
    """Eight replies at temperature 0, asked for together and then one by one."""
    model = chat(temperature=0, max_tokens=16)
    asked = [f"{ASK} {number}" for number in range(8)]
    together = [reply.content for reply in model.batch(asked)]
    alone = [model.invoke(one).content for one in asked]
    return ["same" if a == b else f"{a!r} != {b!r}" for a, b in zip(together, alone, strict=True)]


def asynchronous() -> str:
    async def ask() -> str:
        return "".join([chunk.content async for chunk in forced().astream(ASK)])

    return asyncio.run(ask())


def vectors(**fields: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(model=MODEL, max_retries=0, **fields)


def embeddings() -> list[list[float]]:
    embedder = vectors(check_embedding_ctx_length=False)
    return [*embedder.embed_documents(["left", "right", "left"]), embedder.embed_query("left")]


def embeddings_of_token_ids() -> list[str]:
    """The default sends the ids of OpenAI's own tokenizer, which no other model knows."""
    return kind_of(lambda: vectors().embed_query("left and right, hippopotamus"))


def errors() -> dict[str, list[str]]:
    wrong = {
        "key": {"api_key": "wrong"},
        "name": {"model": "nobody/nothing"},
        "field": {"extra_body": {"regex": "("}},
    }
    found = {
        what: kind_of(lambda fields=fields: chat(**fields).invoke(ASK))
        for what, fields in wrong.items()
    }
    return found | {"length": kind_of(lambda: chat().invoke("left right " * 4_000))}


if __name__ == "__main__":
    tell(
        invoke,
        streamed,
        tools,
        streamed_tools,
        json_schema,
        json_schema_strict,
        function_calling,
        batch,
        asynchronous,
        embeddings,
        embeddings_of_token_ids,
        errors,
    )
