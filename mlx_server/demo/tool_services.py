"""Tools that ask some service: money, words, people."""

from __future__ import annotations

import json
import random

from . import tool_words as words
from .tool_kinds import returned
from .tool_offers import Offer, Use, spell, text


def convert_currency(rng: random.Random) -> Offer:
    amount, base, target = rng.choice(
        (("amount", "from", "to"), ("amount", "from_currency", "to_currency"))
    )
    properties = {
        amount: {"type": "number"},
        base: text("Code, e.g. USD"),
        target: text("Code, e.g. EUR"),
    }
    name = rng.choice(("convert_currency", "exchange", "currency"))
    tool = spell(rng, name, "Convert money from one currency to another.", properties)

    def ask(rng: random.Random) -> Use:
        count, (one, other) = words.number(rng), rng.sample(words.CURRENCIES, 2)
        forms = ("Convert {} {} to {}.", "What is {} {} in {}?", "How much is {} {} in {}?")
        value = round(count * rng.uniform(0.1, 9), 2)
        result = returned(rng, rng.choice(("result", "value", "amount")), value)
        question = rng.choice(forms).format(count, one, other)
        answer = f"{count} {one} is {value} {other}."
        return Use(question, ({amount: count, base: one, target: other},), (result,), answer)

    return Offer(tool, ask)


def translate(rng: random.Random) -> Offer:
    target = rng.choice(("language", "target", "target_language", "to"))
    properties = {"text": text("What to translate"), target: text("The language, e.g. French")}
    tool = spell(rng, rng.choice(("translate", "translate_text")), "Translate text.", properties)

    def ask(rng: random.Random) -> Use:
        source, language = words.phrase(rng, 1, 4), rng.choice(words.LANGUAGES)
        forms = ('Translate "{}" to {}.', 'Translate "{}" into {}', 'What is "{}" in {}?')
        done = " ".join(words.made(rng) for _ in range(rng.randint(1, 3)))
        result = returned(rng, rng.choice(("translation", "text")), done)
        answer = f'"{source}" is "{done}" in {language}.'
        question = rng.choice(forms).format(source, language)
        return Use(question, ({"text": source, target: language},), (result,), answer)

    return Offer(tool, ask)


def stock_price(rng: random.Random) -> Offer:
    key = rng.choice(("symbol", "symbol", "ticker"))
    properties = {key: text("The symbol, e.g. AAPL")}
    name = rng.choice(("get_stock_price", "stock_price", "get_quote"))
    tool = spell(rng, name, "Get the price of a stock.", properties)

    def ask(rng: random.Random) -> Use:
        symbol = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(2, 4)))
        symbol = rng.choice((symbol, symbol, "AAPL", "MSFT", "NVDA", "TSLA"))
        forms = ("What is the price of {}?", "How is {} doing?", "stock price of {}", "Price of {}")
        price = round(rng.uniform(1, 900), 2)
        result = returned(rng, "price", price)
        answer = f"{symbol} costs {price} dollars."
        question = rng.choice(forms).format(symbol)
        return Use(question, ({key: symbol},), (result,), answer, f"And {symbol}?")

    return Offer(tool, ask)


def lookup_user(rng: random.Random) -> Offer:
    by_number = rng.random() < 0.4
    key = rng.choice(("id", "user_id")) if by_number else rng.choice(("name", "username"))
    schema = {"type": "integer"} if by_number else text("The user's name")
    name = rng.choice(("lookup_user", "get_user", "find_user"))
    tool = spell(rng, name, "Look up a user.", {key: schema})

    def ask(rng: random.Random) -> Use:
        who = words.number(rng) if by_number else words.person(rng)
        forms = ("Look up user {}.", "Look up the user {}.", "Find the user {}", "Who is user {}?")
        fields = {
            "name": words.person(rng) if by_number else who,
            "email": words.email(rng),
            "city": words.city(rng),
        }
        answer = f"User {who} is {fields['name']} from {fields['city']}, {fields['email']}."
        if not by_number:
            answer = f"{who} lives in {fields['city']}. The email is {fields['email']}."
        question = rng.choice(forms).format(who)
        return Use(question, ({key: who},), (json.dumps(fields),), answer)

    return Offer(tool, ask)


def order_status(rng: random.Random) -> Offer:
    key = rng.choice(("order_id", "order", "id"))
    name = rng.choice(("get_order", "order_status", "get_delivery_date"))
    tool = spell(rng, name, "Get the status of an order.", {key: text("The order's id")})

    def ask(rng: random.Random) -> Use:
        order = f"{rng.choice('ABCDKX')}{words.number(rng, 5)}"
        status = rng.choice(("shipped", "packed", "delivered", "delayed", "cancelled", "paid"))
        forms = ("Where is my order {}?", "What is the status of order {}?", "Order {}?")
        result = returned(rng, "status", status)
        question = rng.choice(forms).format(order)
        return Use(question, ({key: order},), (result,), f"Your order {order} is {status}.")

    return Offer(tool, ask)
