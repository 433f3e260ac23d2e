"""Short functions: language, what the code does (as a verb in the third person), the code."""

from __future__ import annotations

PYTHON = (
    ("adds two numbers", "def add(a, b):\n    return a + b"),
    ("subtracts two numbers", "def subtract(a, b):\n    return a - b"),
    ("multiplies two numbers", "def multiply(a, b):\n    return a * b"),
    ("divides two numbers", "def divide(a, b):\n    return a / b"),
    ("squares a number", "def square(x):\n    return x * x"),
    ("prints hello world", 'def hello():\n    print("Hello, world!")'),
    ("greets a person", 'def greet(name):\n    print(f"Hello, {name}!")'),
    ("reverses a string", "def reverse(text):\n    return text[::-1]"),
    ("checks whether a number is even", "def is_even(n):\n    return n % 2 == 0"),
    ("checks whether a number is odd", "def is_odd(n):\n    return n % 2 == 1"),
    ("checks whether a text is a palindrome", "def is_palindrome(s):\n    return s == s[::-1]"),
    ("returns the largest of a list", "def largest(items):\n    return max(items)"),
    ("returns the smallest of a list", "def smallest(items):\n    return min(items)"),
    ("sums a list", "def total(items):\n    return sum(items)"),
    ("sorts a list", "def sort(items):\n    return sorted(items)"),
    ("returns the average of a list", "def mean(items):\n    return sum(items) / len(items)"),
    (
        "computes the factorial",
        "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)",
    ),
    (
        "computes Fibonacci numbers",
        "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
        "    return a",
    ),
    (
        "checks whether a number is prime",
        "def is_prime(n):\n    return n > 1 and all(n % k for k in range(2, n))",
    ),
    ("counts the words of a text", "def count_words(text):\n    return len(text.split())"),
    (
        "counts the vowels of a text",
        'def count_vowels(text):\n    return sum(c in "aeiou" for c in text.lower())',
    ),
    ("reads a file", "def read(path):\n    with open(path) as file:\n        return file.read()"),
    (
        "writes a text to a file",
        'def write(path, text):\n    with open(path, "w") as file:\n        file.write(text)',
    ),
    (
        "reads JSON from a file",
        "import json\n\ndef load(path):\n    with open(path) as file:\n"
        "        return json.load(file)",
    ),
    ("converts celsius to fahrenheit", "def to_fahrenheit(c):\n    return c * 9 / 5 + 32"),
    ("converts fahrenheit to celsius", "def to_celsius(f):\n    return (f - 32) * 5 / 9"),
    ("counts from one to ten", "for number in range(1, 11):\n    print(number)"),
    ("swaps two values", "def swap(a, b):\n    return b, a"),
    ("removes duplicates from a list", "def unique(items):\n    return list(dict.fromkeys(items))"),
    ("waits a second", "import time\n\ntime.sleep(1)"),
    ("rolls a die", "import random\n\ndef roll():\n    return random.randint(1, 6)"),
    ("prints the date", "from datetime import date\n\nprint(date.today())"),
    ("lists the files of a folder", 'import os\n\nfor name in os.listdir("."):\n    print(name)'),
)
JAVASCRIPT = (
    ("adds two numbers", "function add(a, b) {\n  return a + b;\n}"),
    ("multiplies two numbers", "function multiply(a, b) {\n  return a * b;\n}"),
    ("prints hello world", 'console.log("Hello, world!");'),
    ("greets a person", "function greet(name) {\n  console.log(`Hello, ${name}!`);\n}"),
    (
        "reverses a string",
        'function reverse(text) {\n  return [...text].reverse().join("");\n}',
    ),
    ("checks whether a number is even", "function isEven(n) {\n  return n % 2 === 0;\n}"),
    ("returns the largest of a list", "function largest(items) {\n  return Math.max(...items);\n}"),
    ("sums a list", "function total(items) {\n  return items.reduce((a, b) => a + b, 0);\n}"),
    ("counts from one to ten", "for (let i = 1; i <= 10; i++) {\n  console.log(i);\n}"),
    ("squares a number", "const square = (x) => x * x;"),
    ("parses JSON", "const value = JSON.parse(text);"),
)
SHELL = (
    ("prints hello world", 'echo "Hello, world!"'),
    ("lists the files of a folder", "ls -la"),
    ("counts the lines of a file", 'wc -l "$1"'),
    ("counts from one to ten", 'for i in $(seq 1 10); do\n  echo "$i"\ndone'),
    ("makes a folder", 'mkdir -p "$1"'),
    ("copies a file", 'cp "$1" "$2"'),
    ("prints the date", "date"),
    ("waits a second", "sleep 1"),
    ("greets a person", 'echo "Hello, $1!"'),
)
SNIPPETS = tuple(
    (language, task, code)
    for language, table in (("python", PYTHON), ("javascript", JAVASCRIPT), ("bash", SHELL))
    for task, code in table
)
