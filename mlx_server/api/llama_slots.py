"""GET /slots and POST /slots/{id_slot}?action=…, as in llama.cpp's HTTP server."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Route
from mlx_server.api.described import accepting
from mlx_server.api.fields import INT32_MAX, got, required, text
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.llama_options import settings_body
from mlx_server.api.schema import validate
from mlx_server.errors import NotSupported, RequestError, Unavailable
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import SlotInfo

ACTIONS = ("save", "restore", "erase")
_OFF = ("", "0", "false")


@accepting(str)
def _filename(value: object) -> str:
    name = text(value)
    if not name.strip(". ") or any(c in "/\\\0" for c in name):
        raise ValueError("must be a file's name, without a path")
    return name


class SlotFileBody(BaseModel):
    """
    Attributes:
        filename: In the folder of --slot-save-path.
    """

    filename: Annotated[str, required(_filename)]


class LlamaSlots(LlamaDialect):
    def __init__(self) -> None:
        self.routes = (
            Route(
                "GET", "/slots", self.slots, "What the slots are doing", query=("fail_on_no_slot",)
            ),
            Route(
                "POST",
                "/slots/{id_slot}",
                self.act,
                "Save, restore or erase what a slot remembers",
                SlotFileBody,
                ("action",),
                may_be_empty=True,  # to erase
            ),
        )

    def slots(self, http: HttpRequest, pool: Pool) -> JsonReply:
        if not pool.config.slots:
            raise NotSupported("This server does not support slots endpoint.")
        slots = pool.slots()
        wanted = http.query.get("fail_on_no_slot", [""])[-1].lower() not in _OFF
        # An encoder has none, and always takes another request.
        if wanted and slots and all(slot.processing for slot in slots):
            raise Unavailable("no slot available", retry_after=1)
        return JsonReply([slot_body(slot) for slot in slots])

    def act(self, http: HttpRequest, pool: Pool) -> JsonReply:
        slot = _slot_number(http.params["id_slot"])
        action = http.query.get("action", [""])[-1]
        if action not in ACTIONS:
            raise RequestError(
                "Invalid action: `action` in the query must be save, restore or erase, but got "
                f"{got(action)}.",
                param="action",
            )
        if action == "erase":
            return JsonReply({"id_slot": slot, "n_erased": pool.erase_slot(slot).num_tokens})
        if pool.config.slot_save_path is None:
            raise NotSupported(
                "This server does not support slots action. Start it with `--slot-save-path`"
            )
        filename = validate(SlotFileBody, http.json()).filename
        if action == "save":
            file = pool.save_slot(slot, filename)
            counts = {"n_saved": file.num_tokens, "n_written": file.num_bytes}
        else:
            file = pool.restore_slot(slot, filename)
            counts = {"n_restored": file.num_tokens, "n_read": file.num_bytes}
        timings = {f"{action}_ms": round(file.seconds * 1000, 3)}
        return JsonReply({"id_slot": slot, "filename": filename, **counts, "timings": timings})


def _slot_number(given: str) -> int:
    if not (given.isascii() and given.isdigit() and len(given) <= 10 and int(given) <= INT32_MAX):
        raise RequestError(
            f"Invalid slot ID {got(given)}: send one of the numbers that GET /slots lists.",
            param="id_slot",
        )
    return int(given)


def slot_body(slot: SlotInfo) -> Json:
    """A slot in the document's form and in today's.

    A reply that a stop string ended is known by the string that its text still has.
    """
    settings = settings_body(slot.settings, context_length=slot.context_length, model=slot.model)
    stops = slot.settings.stop if isinstance(slot.settings, SamplingParams) else ()
    word = ""
    if slot.finish_reason not in (None, "length"):
        word = next((stop for stop in stops if stop in slot.text), "")
    return {
        **settings,
        "id": slot.id,
        # Requests have names here, not numbers.
        "id_task": -1,
        "task_id": -1,
        "n_ctx": slot.context_length,
        "model": slot.model,
        "speculative": False,
        "is_processing": slot.processing,
        "state": 1 if slot.processing else 0,
        "prompt": slot.prompt,
        "generated": slot.text,
        "n_prompt_tokens": slot.num_prompt_tokens,
        "params": settings,
        "next_token": {
            "has_next_token": slot.processing,
            "has_new_line": "\n" in slot.text,
            "n_remain": slot.num_left,
            "n_decoded": slot.num_decoded,
            "stopped_eos": slot.finish_reason == "stop" and not word,
            "stopped_limit": slot.finish_reason == "length",
            "stopped_word": bool(word),
            "stopping_word": word,
        },
    }
