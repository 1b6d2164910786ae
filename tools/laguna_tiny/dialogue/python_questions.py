"""Short questions about Python and their answers, and a little small talk."""

from __future__ import annotations

import random

from laguna_tiny.dialogue.exchange import Exchange, answer, pick, user

FACTS = {
    "len": "len(x) returns the number of items in x.",
    "print": "print(x) writes x and a newline to standard output.",
    "range": "range(n) gives the integers from 0 to n - 1.",
    "sorted": "sorted(x) returns a new list with the items of x in order.",
    "enumerate": "enumerate(x) gives pairs of an index and an item.",
    "zip": "zip(a, b) gives pairs of items, one from each.",
    "map": "map(f, x) calls f on each item of x.",
    "filter": "filter(f, x) keeps the items for which f is true.",
    "sum": "sum(x) adds the items of x.",
    "min": "min(x) returns the smallest item of x.",
    "max": "max(x) returns the largest item of x.",
    "abs": "abs(x) returns the absolute value of x.",
    "open": "open(path) opens a file and returns a file object.",
    "input": "input() reads a line from standard input as a string.",
    "int": "int(x) converts x to an integer.",
    "str": "str(x) converts x to a string.",
    "float": "float(x) converts x to a floating point number.",
    "list": "list(x) makes a list of the items of x.",
    "dict": "dict() makes a new dictionary.",
    "set": "set(x) makes a set of the different items of x.",
    "tuple": "tuple(x) makes a tuple of the items of x.",
    "type": "type(x) returns the class of x.",
    "isinstance": "isinstance(x, t) tests whether x is an instance of t.",
    "repr": "repr(x) returns a string that represents x.",
    "getattr": "getattr(x, name) returns the attribute of x with that name.",
    "any": "any(x) is true if at least one item of x is true.",
    "all": "all(x) is true if every item of x is true.",
    "reversed": "reversed(x) gives the items of x from last to first.",
    "round": "round(x, n) rounds x to n digits.",
    "hash": "hash(x) returns the hash value of x.",
    "append": "x.append(item) adds an item at the end of the list x.",
    "split": "s.split() cuts the string s into a list of words.",
    "join": "s.join(items) joins strings with s between them.",
    "strip": "s.strip() removes white space at both ends of s.",
    "replace": "s.replace(a, b) returns s with each a replaced by b.",
}
TERMS = {
    "a list comprehension": "It builds a list from a loop: [x * x for x in range(10)].",
    "a decorator": "A decorator is a function that takes a function and returns another one.",
    "a generator": "A generator is a function with yield; it gives its values one by one.",
    "a class": "A class describes objects: their attributes and their methods.",
    "a lambda": "A lambda is a small function without a name: lambda x: x + 1.",
    "a module": "A module is a file of Python code that can be imported.",
    "a package": "A package is a directory of modules.",
    "a dictionary": "A dictionary maps keys to values: {'a': 1}.",
    "a tuple": "A tuple is a sequence that cannot be changed: (1, 2).",
    "a set": "A set holds each of its items once: {1, 2, 3}.",
    "an exception": "An exception is an error that can be caught with try and except.",
    "an iterator": "An iterator gives its next item with next() until it is exhausted.",
    "a context manager": "It sets something up and cleans it up again, in a with statement.",
    "a docstring": "A docstring is the string that describes a function, class or module.",
    "a virtual environment": "It is a directory with its own Python packages.",
    "a closure": "A closure is a function that remembers variables of the function around it.",
    "a slice": "A slice takes a part of a sequence: x[1:3].",
    "an f-string": "An f-string puts values into text: f'{name} is {age}'.",
    "a dataclass": "A dataclass is a class whose __init__ is written from its fields.",
    "self": "self is the object that a method was called on.",
    "None": "None is the value that stands for no value.",
    "recursion": "Recursion is a function that calls itself.",
    "PEP 8": "PEP 8 is the style guide for Python code.",
    "pip": "pip installs Python packages.",
    "the GIL": "The GIL is a lock that lets one thread run Python code at a time.",
}
TASKS = {
    "open a file": "with open(path) as file:\n    text = file.read()",
    "read a file line by line": (
        "with open(path) as file:\n    for line in file:\n        print(line)"
    ),
    "write to a file": "with open(path, 'w') as file:\n    file.write(text)",
    "sort a list": "items.sort()",
    "reverse a list": "items.reverse()",
    "copy a list": "new = list(items)",
    "reverse a string": "text[::-1]",
    "import a module": "import os",
    "catch an exception": "try:\n    run()\nexcept ValueError as error:\n    print(error)",
    "raise an exception": "raise ValueError('message')",
    "define a class": (
        "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y"
    ),
    "loop over a dictionary": "for key, value in d.items():\n    print(key, value)",
    "loop over a list": "for item in items:\n    print(item)",
    "read JSON": "import json\ndata = json.loads(text)",
    "write JSON": "import json\ntext = json.dumps(data)",
    "get the current time": "import time\nnow = time.time()",
    "list the files of a directory": "import os\nnames = os.listdir(path)",
    "check that a file exists": "import os\nfound = os.path.exists(path)",
    "make a random number": "import random\nx = random.random()",
    "join two lists": "both = a + b",
    "remove duplicates from a list": "items = list(set(items))",
    "count words": "from collections import Counter\ncounts = Counter(text.split())",
    "convert a string to an integer": "number = int(text)",
    "convert an integer to a string": "text = str(number)",
    "swap two variables": "a, b = b, a",
}
FUNCTIONS = {
    "adds two numbers": ("add(a, b)", "a + b"),
    "subtracts two numbers": ("subtract(a, b)", "a - b"),
    "multiplies two numbers": ("multiply(a, b)", "a * b"),
    "divides two numbers": ("divide(a, b)", "a / b"),
    "returns the larger of two numbers": ("larger(a, b)", "max(a, b)"),
    "squares a number": ("square(x)", "x * x"),
    "doubles a number": ("double(x)", "2 * x"),
    "tests whether a number is even": ("is_even(n)", "n % 2 == 0"),
    "reverses a string": ("reverse(text)", "text[::-1]"),
    "counts the words of a text": ("count_words(text)", "len(text.split())"),
    "returns the first item of a list": ("first(items)", "items[0]"),
    "returns the last item of a list": ("last(items)", "items[-1]"),
    "computes the mean of a list": ("mean(items)", "sum(items) / len(items)"),
    "reads a file": ("read(path)", "open(path).read()"),
    "greets a user": ("greet(name)", "f'Hello, {name}!'"),
}
FACT_ASKED = (
    "What does {x} do?", "What does {x} do in Python?", "What is {x} for?", "Explain {x}.",
    "What does the function {x} do?", "Tell me what {x} does.", "How does {x} work?",
    "what is {x}", "Please explain {x} in Python.", "Describe {x} in one sentence.",
)  # fmt: skip
TERM_ASKED = (
    "What is {x}?", "What is {x} in Python?", "Explain {x}.", "Tell me what {x} is.", "what's {x}",
    "Please explain {x} in Python.", "Describe {x} in one sentence.", "Can you explain {x}?",
)  # fmt: skip
TASK_ASKED = (
    "How do I {x}?", "How do I {x} in Python?", "How can I {x}?", "Show me how to {x}.",
    "How to {x}", "I want to {x}.", "Please show me how to {x} in Python.",
)  # fmt: skip
FUNCTION_ASKED = (
    "Write a function that {x}.", "Write a Python function that {x}.",
    "Please write a function that {x}.", "I need a function that {x}.",
    "Give me a function that {x}.", "Can you write a function that {x}?",
)  # fmt: skip
SMALL_TALK = {
    "Hello! How can I help you?": (
        "Hello", "Hi", "Hello!", "Hi there", "Hey", "Good morning", "hello", "Hi!", "Hey there!",
    ),
    "I am Laguna, a small language model made by Poolside.": (
        "Who are you?", "What are you?", "What is your name?", "Are you a robot?", "Who made you?",
    ),
    "You are welcome!": ("Thanks", "Thank you!", "Thanks a lot", "thank you", "Great, thanks."),
    "Goodbye!": ("Bye", "Goodbye", "See you", "Bye!", "Good night"),
    "I can answer short questions about Python and call tools.": (
        "What can you do?", "How can you help me?", "What are you good at?", "Help",
    ),
}  # fmt: skip
SMALL_THOUGHTS = ("Just small talk.", "A greeting or the like.", "No tool needed.", "small talk")
THOUGHTS = (
    "A question about Python.", "I know this.", "No tool needed.", "Python question",
    "The user asks about {x}.", "I can answer this myself.",
)  # fmt: skip


def small_talk(rng: random.Random) -> Exchange:
    """A greeting and the like."""
    reply = pick(rng, tuple(SMALL_TALK))
    text = pick(rng, SMALL_TALK[reply])
    return Exchange(f"talk/{text}", (user(text), answer(pick(rng, SMALL_THOUGHTS), reply)))


def exchange(rng: random.Random) -> Exchange:
    """A question about Python, answered from memory."""
    kind = pick(rng, ("fact", "term", "task", "function"))
    if kind == "function":
        subject = pick(rng, tuple(FUNCTIONS))
        asked = pick(rng, FUNCTION_ASKED)
        signature, body = FUNCTIONS[subject]
        text = f"```python\ndef {signature}:\n    return {body}\n```"
    elif kind == "task":
        subject, asked = pick(rng, tuple(TASKS)), pick(rng, TASK_ASKED)
        text = f"```python\n{TASKS[subject]}\n```"
    else:
        table, asking = (FACTS, FACT_ASKED) if kind == "fact" else (TERMS, TERM_ASKED)
        subject, asked = pick(rng, tuple(table)), pick(rng, asking)
        text = table[subject]
    thought = pick(rng, THOUGHTS).format(x=subject)
    return Exchange(
        f"python/{asked}/{subject}", (user(asked.format(x=subject)), answer(thought, text))
    )
