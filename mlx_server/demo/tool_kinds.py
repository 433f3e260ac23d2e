"""The tools beside the weather: each function draws one spelling of one tool."""

from __future__ import annotations

import json
import operator
import random
from datetime import date, timedelta
from typing import Any

from . import tool_words as words
from .tool_offers import Offer, Use, spell, text, whole

SUMS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
ASK_SUM = (
    "What is {}?",
    "What is {}?",
    "what's {}",
    "How much is {}?",
    "Calculate {}.",
    "Compute {}, please.",
    "{}?",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COMMANDS = (
    ("ls", "ls -la", "pwd", "git status", "git log", "git diff", "make", "make test", "whoami")
    + ("uname -a", "df -h", "date", "npm test", "npm install", "pytest", "pytest -q", "env")
    + ("cat {}", "rm {}", "wc -l {}", "head {}", "touch {}", "python {}", "bash {}", "grep -n x {}")
)


def returned(rng: random.Random, key: str, value: Any) -> str:
    """A tool's result: the bare value, or JSON with it under `key`."""
    return str(value) if rng.random() < 0.5 else json.dumps({key: value})


def arithmetic(rng: random.Random) -> Offer:
    return rng.choice((calculate_words, calculate_expression, add_numbers))(rng)


def calculate_words(rng: random.Random) -> Offer:
    operators = [*SUMS, "divided by"]
    sort = rng.choice(("integer", "number"))
    number: dict[str, Any] = {"type": sort} | (
        {"minimum": -10000, "maximum": 10000} if sort == "integer" else {}
    )
    properties: dict[str, dict[str, Any]] = {
        "a": number,
        "operation": {"enum": operators},
        "b": number,
    }
    tool = spell(rng, "calculate", "Work out a sum.", properties)

    def ask(rng: random.Random) -> Use:
        a, name, b = words.number(rng, 3), rng.choice(operators), words.number(rng, 3)
        value = SUMS[name](a, b) if name in SUMS else round(a / b, 2)
        question = rng.choice(ASK_SUM).format(f"{a} {name} {b}")
        arguments = {"a": a, "operation": name, "b": b}
        result = returned(rng, "result", value)
        return Use(question, (arguments,), (result,), f"{a} {name} {b} is {value}.")

    return Offer(tool, ask)


def calculate_expression(rng: random.Random) -> Offer:
    name = rng.choice(("calculate", "calculator", "evaluate", "calc"))
    tool = spell(rng, name, "Evaluate an expression.", {"expression": text("e.g. 2 + 3 * 4")})

    def ask(rng: random.Random) -> Use:
        a, sign, b = words.number(rng), rng.choice((*SIGNS,)), words.number(rng)
        expression = f"{a} {sign} {b}" if rng.random() < 0.7 else f"{a}{sign}{b}"
        value = SIGNS[sign](a, b)
        result = returned(rng, rng.choice(("result", "value")), value)
        question = rng.choice(ASK_SUM).format(expression)
        return Use(question, ({"expression": expression},), (result,), f"{expression} = {value}.")

    return Offer(tool, ask)


def add_numbers(rng: random.Random) -> Offer:
    one, other = rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")))
    name = rng.choice(("add_numbers", "add", "sum"))
    properties = {one: whole("The first number"), other: whole("The second number")}
    tool = spell(rng, name, "Add two numbers.", properties)

    def ask(rng: random.Random) -> Use:
        a, b = words.number(rng), words.number(rng)
        forms = ("Add {} and {}.", "What is {} plus {}?", "What is {} + {}?", "What is {} and {}?")
        question = rng.choice((*forms, "Sum of {} and {}?")).format(a, b)
        result = returned(rng, rng.choice(("sum", "result")), a + b)
        return Use(question, ({one: a, other: b},), (result,), f"{a} + {b} = {a + b}.")

    return Offer(tool, ask)


def clock(rng: random.Random) -> Offer:
    return rng.choice((clock_of_offset, time_of_city, time_of_city))(rng)


def hour(rng: random.Random) -> str:
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}"


def clock_of_offset(rng: random.Random) -> Offer:
    offset = {"type": "integer", "minimum": -12, "maximum": 14}
    about = "Day and time at an offset from UTC in hours."
    tool = spell(rng, "clock", about, {"utc_offset": offset})

    def ask(rng: random.Random) -> Use:
        hours, now = rng.randint(-12, 14), f"{rng.choice(DAYS)}, {hour(rng)}"
        asks = ("What time is it at UTC{:+}?", "Time in UTC{:+}?", "Which day is it at UTC{:+}?")
        question = rng.choice(asks).format(hours)
        return Use(question, ({"utc_offset": hours},), (now,), f"It is {now} at UTC{hours:+}.")

    return Offer(tool, ask)


def time_of_city(rng: random.Random) -> Offer:
    key = rng.choice(("city", "location", "place"))
    name = rng.choice(("get_time", "get_time", "get_current_time", "current_time"))
    tool = spell(rng, name, "Get the current time in a city.", {key: text("City name")})

    def ask(rng: random.Random) -> Use:
        where, now = words.place(rng), hour(rng)
        asks = ("What time is it in {}?", "time in {}", "Which time is it in {} now?")
        result = returned(rng, "time", now)
        answer = f"It is {now} in {where}."
        question = rng.choice((*asks, "Tell me the time in {}.")).format(where)
        return Use(question, ({key: where},), (result,), answer, f"And in {where}?")

    return Offer(tool, ask)


def search(rng: random.Random) -> Offer:
    key = rng.choice(("query", "query", "q"))
    name = rng.choice(("search_web", "web_search", "search"))
    tool = spell(rng, name, "Search the web.", {key: text("What to search for")})

    def ask(rng: random.Random) -> Use:
        query = words.phrase(rng, 1, 4)
        forms = ("Search the web for {}.", "search for {}", "Look up {} on the web.", "Google {}")
        title = f"{words.phrase(rng, 2, 4).capitalize()}"
        url = f"https://{words.made(rng)}.com/{words.word(rng)}"
        result = json.dumps([{"title": title, "url": url}])
        if rng.random() < 0.3:
            result = f"{title} ({url})"
        answer = f"I found: {title} ({url})."
        return Use(rng.choice(forms).format(query), ({key: query},), (result,), answer)

    return Offer(tool, ask)


def read_file(rng: random.Random) -> Offer:
    key = rng.choice(("path", "path", "file_path", "filePath", "filename"))
    name = rng.choice(("read_file", "read_file", "read", "cat_file", "open_file"))
    tool = spell(rng, name, "Read a file.", {key: text("The path of the file")})

    def ask(rng: random.Random) -> Use:
        path, content = words.file_path(rng), words.phrase(rng, 1, 5)
        forms = ("Read {}.", "Read the file {}", "What is in {}?", "Show me {}", "Open {}, please.")
        question = rng.choice(forms).format(path)
        if rng.random() < 0.1:
            missing = "error: no such file"
            return Use(question, ({key: path},), (missing,), f"There is no file {path}.")
        return Use(question, ({key: path},), (content,), f"{path} contains: {content}")

    return Offer(tool, ask)


def write_file(rng: random.Random) -> Offer:
    key, body = rng.choice((("path", "content"), ("filename", "text"), ("filePath", "content")))
    properties = {key: text("Where to write"), body: text("What to write")}
    name = rng.choice(("write_file", "write_file", "write", "create_file"))
    tool = spell(rng, name, "Write text to a file.", properties)

    def ask(rng: random.Random) -> Use:
        path, content = words.file_path(rng), words.phrase(rng, 1, 4)
        forms = ('Write "{1}" to {0}.', "Create {0} with the text: {1}", 'Put "{1}" into {0}')
        result = rng.choice(("ok", "done", "written", json.dumps({"ok": True})))
        question = rng.choice(forms).format(path, content)
        return Use(question, ({key: path, body: content},), (result,), f"I wrote {path}.")

    return Offer(tool, ask)


def list_files(rng: random.Random) -> Offer:
    key = rng.choice(("path", "directory", "folder"))
    name = rng.choice(("list_files", "list_files", "list_directory", "list"))
    tool = spell(rng, name, "List the files in a folder.", {key: text("The folder")})

    def ask(rng: random.Random) -> Use:
        folder = rng.choice(("src", "docs", "tests", "/tmp", words.word(rng), words.made(rng)))
        files = [f"{words.identifier(rng)}.{rng.choice(('py', 'md', 'txt'))}" for _ in range(3)]
        files = files[: rng.randint(1, 3)]
        forms = ("List the files in {}.", "Which files are in {}?", "What is in the folder {}?")
        result = rng.choice(("\n".join(files), json.dumps(files)))
        answer = f"{folder} contains {', '.join(files)}."
        return Use(rng.choice(forms).format(folder), ({key: folder},), (result,), answer)

    return Offer(tool, ask)


def run_command(rng: random.Random) -> Offer:
    key = rng.choice(("command", "command", "cmd"))
    name = rng.choice(("run_command", "bash", "shell", "execute"))
    tool = spell(rng, name, "Run a shell command.", {key: text("The command to run")})

    def ask(rng: random.Random) -> Use:
        command = rng.choice(COMMANDS).format(words.file_path(rng))
        if rng.random() < 0.3:
            command = f'echo "{words.phrase(rng)}"'
        output = words.phrase(rng, 1, 4)
        forms = ("Run {}", "Run `{}`.", "Execute {}", "Please run {}", "Run the command {}")
        question = rng.choice(forms).format(command)
        return Use(question, ({key: command},), (output,), f"The command printed: {output}")

    return Offer(tool, ask)


def send_email(rng: random.Random) -> Offer:
    properties = {"to": text("The address"), "subject": text("The subject")}
    long = rng.random() < 0.6
    if long:
        properties["body"] = text("The text")
    tool = spell(rng, rng.choice(("send_email", "send_mail")), "Send an email.", properties)

    def ask(rng: random.Random) -> Use:
        to, subject, body = words.email(rng), words.phrase(rng), words.phrase(rng, 2, 5)
        question = f'Send an email to {to} with the subject "{subject}"'
        arguments = {"to": to, "subject": subject}
        if long:
            question += f' and the text "{body}"'
            arguments["body"] = body
        result = rng.choice(("sent", "ok", json.dumps({"status": "sent"})))
        return Use(f"{question}.", (arguments,), (result,), f"I sent the email to {to}.")

    return Offer(tool, ask)


def set_timer(rng: random.Random) -> Offer:
    unit = rng.choice(("minutes", "minutes", "seconds"))
    properties = {unit: whole(f"How many {unit}")}
    tool = spell(rng, rng.choice(("set_timer", "start_timer")), "Set a timer.", properties)

    def ask(rng: random.Random) -> Use:
        count = rng.randint(2, 120)
        forms = ("Set a timer for {} {}.", "timer {} {}", "Wake me in {} {}.", "Timer for {} {}!")
        question = rng.choice(forms).format(count, unit)
        result = rng.choice(("ok", "started", json.dumps({"id": words.number(rng)})))
        return Use(question, ({unit: count},), (result,), f"The timer is set for {count} {unit}.")

    return Offer(tool, ask)


def remind(rng: random.Random) -> Offer:
    properties = {"text": text("What to remember"), "date": text("Day as YYYY-MM-DD")}
    tool = spell(rng, rng.choice(("add_reminder", "remind")), "Set a reminder.", properties)

    def ask(rng: random.Random) -> Use:
        day = str(date(2024, 1, 1) + timedelta(days=rng.randrange(2000)))
        arguments = {"text": words.phrase(rng), "date": day}
        forms = ("Remind me of the {text} on {date}.", 'Add the reminder "{text}" for {date}')
        answer = f"I will remind you of the {arguments['text']} on {day}."
        question = rng.choice(forms).format(**arguments)
        return Use(question, (arguments,), ("ok",), answer)

    return Offer(tool, ask)
