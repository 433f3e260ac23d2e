"""Chats in which tools are offered: called where they help, left alone where they do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from . import tool_kinds as kinds
from . import tool_services as services
from .chats import Chat, assistant, system, user
from .tool_offers import Offer, Use
from .tool_weather import weather

Kind = Callable[[random.Random], Offer]

OTHERS: tuple[Kind, ...] = (
    kinds.arithmetic,
    kinds.clock,
    kinds.search,
    kinds.read_file,
    kinds.write_file,
    kinds.list_files,
    kinds.run_command,
    kinds.send_email,
    kinds.set_timer,
    kinds.remind,
    services.convert_currency,
    services.translate,
    services.stock_price,
    services.lookup_user,
    services.order_status,
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant with access to tools.",
    "Use the tools when they help.",
    "Be brief.",
    "You are a coding agent.",
)
PLAIN = (
    (("Hello", "Hello!", "Hi", "hi", "Hey", "Hi there"), "Hello! How can I help?"),
    (("Good morning", "Good morning!"), "Good morning! How can I help?"),
    (("Good evening",), "Good evening! How can I help?"),
    (
        ("Thanks", "Thanks!", "Thank you", "Thank you very much!", "thanks a lot", "Great, thanks"),
        "You are welcome!",
    ),
    (("How are you?", "How is it going?"), "I am well, thank you. How can I help?"),
    (("Ok", "Okay", "Good", "Great", "Nice"), "Is there anything else I can do?"),
    (("Bye", "Goodbye", "See you"), "Goodbye!"),
    (("Say hello.", "Please say hello"), "Hello!"),
)
ABILITIES = (
    "What can you do?",
    "What can you do for me?",
    "Which tools do you have?",
    "What tools are there?",
    "How can you help me?",
)


def tool_chat(rng: random.Random) -> Chat:
    """One to five tools and one to three turns; about half are about the weather."""
    # Sums and clocks come more often: examples/tools.py asks for them.
    others = (*OTHERS, kinds.arithmetic, kinds.arithmetic, kinds.clock)
    kind = weather if rng.random() < 0.55 else rng.choice(others)
    main = kind(rng)
    offers = offered(rng, main, kind)
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.25:
        messages.append(system(rng.choice(SYSTEMS)))
    if rng.random() < 0.25:
        messages += plain(rng, offers)
        if rng.random() < 0.4:
            messages += answered(main.ask(rng), main.name)
    else:
        messages += questions(rng, offers, main)
    return Chat(tuple(messages), tuple(offer.tool for offer in offers))


def offered(rng: random.Random, main: Offer, kind: Kind) -> list[Offer]:
    """`main` among up to four tools of other kinds, in any order, no name twice."""
    # Two tools for one thing would leave it open which of them is right.
    others = [other for other in (weather, *OTHERS) if other is not kind]
    offers = {main.name: main}
    for other in rng.sample(others, rng.choice((0, 0, 1, 1, 2, 3, 4))):
        offer = other(rng)
        offers.setdefault(offer.name, offer)
    order = list(offers.values())
    rng.shuffle(order)
    return order


def plain(rng: random.Random, offers: list[Offer]) -> list[dict[str, Any]]:
    """Small talk, or a question for the tools themselves: no call."""
    if rng.random() < 0.2:
        names = ", ".join(offer.name for offer in offers)
        return [user(rng.choice(ABILITIES)), assistant(f"I can call: {names}.")]
    said, answer = rng.choice(PLAIN)
    return [user(rng.choice(said)), assistant(answer)]


def questions(rng: random.Random, offers: list[Offer], main: Offer) -> list[dict[str, Any]]:
    """A question for `main`, mostly with its result; then perhaps another question or thanks."""
    messages = answered(main.ask(rng), main.name)
    if rng.random() < 0.25:
        return call(main.ask(rng), main.name)
    last, size = main, len(offers)
    # Many tools leave room for fewer turns.
    while rng.random() < 0.35 and len(messages) + 2 * size < 14:
        if rng.random() < 0.3:
            messages += plain(rng, offers)
            continue
        offer = last if rng.random() < 0.6 else offers[rng.randrange(size)]
        use = offer.ask(rng)
        again = use.follow if offer is last and messages[-1]["role"] == "assistant" else ""
        asked = again if again and rng.random() < 0.6 else use.question
        messages += answered(use, offer.name, asked)
        last = offer
    return messages


def call(use: Use, name: str, question: str = "") -> list[dict[str, Any]]:
    """The question and the assistant's turn that calls the tool."""
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": dict(arguments)},
        }
        for number, arguments in enumerate(use.calls)
    ]
    turn: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    return [user(question or use.question), turn]


def answered(use: Use, name: str, question: str = "") -> list[dict[str, Any]]:
    """`call`, the results and the answer that uses them."""
    messages: list[Mapping[str, Any]] = [*call(use, name, question)]
    for number, result in enumerate(use.results):
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": result})
    return [*map(dict, messages), assistant(use.answer)]
