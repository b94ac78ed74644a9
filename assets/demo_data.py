"""Demo data: instruction rows with computed answers, some of them damaged on purpose.

`write_demo_data` writes three training shards with a known share of noise, a clean validation
file and the truth about the noise. Each kind of task is one small function that draws a prompt
and its correct response. To add a kind, write its function and list it in `TASK_KINDS`.
"""

import calendar
import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forvalue_dagster import corrupt_responses

Row = dict[str, Any]
TaskKind = Callable[[random.Random], tuple[str, str]]

NOISE_SHARES = {"clean": 0.0, "mixed": 0.05, "noisy": 0.45}
"""The training shards and the share of their rows that is damaged."""

HELD_OUT_ROWS = 60
"""Clean rows that nothing is valued against and nothing is trained on."""

_RECIPES = ("answer_swap", "span_deletion", "span_insertion", "word_shuffle")
_PROMPT_FORM_SHARE = 0.5
_TWO_TURN_SHARE = 0.1
_SYSTEM_PROMPT_SHARE = 0.3  # of the rows in chat form
_TRIES_PER_KIND = 200

_SYSTEM_PROMPTS = (
    "You are a helpful assistant that answers briefly and correctly.",
    "You are a patient teacher. Answer in plain English.",
    "You help people with short everyday tasks.",
)
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas")
_ITEMS = ("apples", "pencils", "books", "tickets", "stamps", "cookies", "lamps", "chairs")
_CAPITALS = (
    ("France", "Paris", "Europe"),
    ("Japan", "Tokyo", "Asia"),
    ("Kenya", "Nairobi", "Africa"),
    ("Peru", "Lima", "South America"),
    ("Canada", "Ottawa", "North America"),
    ("Norway", "Oslo", "Europe"),
    ("Egypt", "Cairo", "Africa"),
    ("India", "New Delhi", "Asia"),
    ("Chile", "Santiago", "South America"),
    ("Portugal", "Lisbon", "Europe"),
    ("Ghana", "Accra", "Africa"),
    ("Thailand", "Bangkok", "Asia"),
)
_UNITS = (
    ("kilometer", "kilometers", "meters", 1000),
    ("meter", "meters", "centimeters", 100),
    ("foot", "feet", "inches", 12),
    ("kilogram", "kilograms", "grams", 1000),
    ("liter", "liters", "milliliters", 1000),
    ("week", "weeks", "days", 7),
    ("hour", "hours", "minutes", 60),
    ("minute", "minutes", "seconds", 60),
)
_ACTIONS = (
    ("walks", "walked"),
    ("drives", "drove"),
    ("runs", "ran"),
    ("travels", "traveled"),
    ("goes", "went"),
)
_PLACES = ("the market", "the station", "the library", "the park", "the harbor", "the school")
_COMPANIONS = ("with a friend", "before breakfast", "in the rain", "with two dogs", "after work")
_FUNCTIONS = (
    ("add_{0}", "adds {0} to a number", "number + {0}"),
    ("subtract_{0}", "subtracts {0} from a number", "number - {0}"),
    ("multiply_by_{0}", "multiplies a number by {0}", "number * {0}"),
    ("is_greater_than_{0}", "checks if a number is greater than {0}", "number > {0}"),
    ("is_divisible_by_{0}", "checks if a number is divisible by {0}", "number % {0} == 0"),
)
_REVIEWS = (
    ("positive", "clean and comfortable", "kind and quick to help"),
    ("positive", "bright and quiet", "very friendly"),
    ("positive", "beautiful and spacious", "polite and patient"),
    ("negative", "dirty and cold", "rude and slow"),
    ("negative", "noisy and dark", "very unfriendly"),
    ("negative", "broken and old", "impolite and lazy"),
)
_PHRASES = (
    ("Good morning", "Bonjour", "Buenos días"),
    ("Good night", "Bonne nuit", "Buenas noches"),
    ("Thank you", "Merci", "Gracias"),
    ("Good evening", "Bonsoir", "Buenas tardes"),
    ("I am hungry", "J'ai faim", "Tengo hambre"),
    ("My name is Anna", "Je m'appelle Anna", "Me llamo Anna"),
    ("The house is big", "La maison est grande", "La casa es grande"),
    ("The sun is yellow", "Le soleil est jaune", "El sol es amarillo"),
)
_GUIDES = (
    "boil an egg: Bring water to a boil; Add the egg; Cook it for ten minutes; Peel the egg",
    "make a cup of tea: Boil water; Put a tea bag in a cup; Add the water; Wait three minutes",
    "plant a seed: Fill a pot with soil; Make a small hole; Put in the seed; Water the soil",
    "wash a sweater: Fill a sink with water; Add some soap; Wash the sweater gently; Let it dry",
    "change a light bulb: Turn off the light; Let the bulb cool; Remove it; Put in a new bulb",
    "make a sandwich: Take two slices of bread; Add butter; Add cheese; Put the slices together",
    "paint a wall: Clean the wall; Cover the floor; Apply the first coat; Let the paint dry",
    "clean a window: Mix soap and water; Wipe the window with a cloth; Rinse the glass; Dry it",
)


def word_problem(rng: random.Random) -> tuple[str, str]:
    """Draw a story with a gain and a loss, answered step by step."""
    name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
    start, more = rng.randint(12, 60), rng.randint(5, 40)
    less = rng.randint(2, start)
    both, left = start + more, start + more - less
    prompts = (
        f"{name} has {start} {item}, buys {more} more and gives away {less}. "
        f"How many {item} does {name} have now?",
        f"{name} starts with {start} {item}. After getting {more} more {item}, {name} loses "
        f"{less} of them. How many {item} does {name} have?",
    )
    responses = (
        f"{name} starts with {start} {item}. {start} + {more} = {both}. {both} - {less} = {left}. "
        f"{name} has {left} {item} now.",
        f"First, {start} + {more} = {both} {item}. Then, {both} - {less} = {left} {item}. "
        f"So {name} has {left} {item}.",
    )
    return rng.choice(prompts), rng.choice(responses)


def shopping(rng: random.Random) -> tuple[str, str]:
    """Draw a purchase, answered with the cost and the change."""
    name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = count * price
    paid = cost + rng.randint(1, 20)
    prompts = (
        f"{name} buys {count} {item} at ${price} each and pays with ${paid}. "
        "How much change is there?",
        f"{name} pays ${paid} for {count} {item}. Each of them costs ${price}. "
        f"How much change does {name} get?",
    )
    responses = (
        f"The {count} {item} cost {count} x ${price} = ${cost}. "
        f"The change is ${paid} - ${cost} = ${paid - cost}.",
        f"The total cost of {count} {item} is {count} x ${price} = ${cost}. "
        f"{name} gets ${paid} - ${cost} = ${paid - cost} in change.",
    )
    return rng.choice(prompts), rng.choice(responses)


def capital(rng: random.Random) -> tuple[str, str]:
    """Draw a question about a capital, answered in full sentences."""
    country, city, continent = rng.choice(_CAPITALS)
    prompts = (
        f"What is the capital of {country}, and on which continent is it?",
        f"Which city is the capital of {country}? Which continent is the country in?",
        f"Tell me the capital of {country}. Which continent is {country} in?",
    )
    responses = (
        f"The capital of {country} is {city}. {country} is located in {continent}.",
        f"The capital of {country} is {city}, and {country} is located in {continent}.",
    )
    return rng.choice(prompts), rng.choice(responses)


def how_to(rng: random.Random) -> tuple[str, str]:
    """Draw a household task to explain in four steps."""
    task, steps = rng.choice(_GUIDES).split(": ")
    one, two, three, four = (step[0].lower() + step[1:] for step in steps.split("; "))
    prompts = (
        f"How do I {task}? Answer in four short steps.",
        f"Explain in four simple steps how to {task}.",
        f"Give me four simple steps to {task}.",
    )
    listed = f"First, {one}. Then, {two}. Next, {three}. Finally, {four}."
    responses = (
        f"To {task}, follow these steps. {listed}",
        f"Here are four steps to {task}. {listed}",
    )
    return rng.choice(prompts), rng.choice(responses)


def sort_numbers(rng: random.Random) -> tuple[str, str]:
    """Draw numbers to sort, in either direction."""
    numbers, down = rng.sample(range(1, 100), rng.randint(5, 8)), rng.random() < 0.5
    unsorted = ", ".join(map(str, numbers))
    result = ", ".join(map(str, sorted(numbers, reverse=down)))
    order = "from largest to smallest" if down else "from smallest to largest"
    prompts = (
        f"Sort these numbers {order}: {unsorted}.",
        f"Put the following numbers in order {order}: {unsorted}.",
    )
    responses = (
        f"The numbers sorted {order} are: {result}.",
        f"Here are the numbers in order {order}: {result}.",
    )
    return rng.choice(prompts), rng.choice(responses)


def unit_conversion(rng: random.Random) -> tuple[str, str]:
    """Draw a conversion to a smaller unit, answered with its steps."""
    one, many, small, factor = rng.choice(_UNITS)
    amount = rng.randint(2, 40)
    result = amount * factor
    prompts = (
        f"Convert {amount} {many} to {small}. Show the steps.",
        f"How many {small} are there in {amount} {many}? Show the calculation.",
    )
    responses = (
        f"There are {factor} {small} in one {one}. {amount} x {factor} = {result}. "
        f"So {amount} {many} is equal to {result} {small}.",
        f"To convert {many} to {small}, multiply by {factor}. {amount} x {factor} = {result}. "
        f"So there are {result} {small} in {amount} {many}.",
    )
    return rng.choice(prompts), rng.choice(responses)


def upper_case(rng: random.Random) -> tuple[str, str]:
    """Draw a sentence to write in upper case."""
    sentence = _sentence(rng)[1]
    prompts = (
        f'Write this sentence in upper case: "{sentence}"',
        f'Convert this sentence to upper case: "{sentence}"',
    )
    responses = (
        f'The sentence in upper case is: "{sentence.upper()}"',
        f'Here is the sentence in upper case: "{sentence.upper()}"',
    )
    return rng.choice(prompts), rng.choice(responses)


def past_tense(rng: random.Random) -> tuple[str, str]:
    """Draw a sentence to put in the past tense."""
    present, past = _sentence(rng)
    prompts = (
        f'Rewrite this sentence in the past tense: "{present}"',
        f'Put this sentence in the past tense: "{present}"',
    )
    responses = (
        f'The sentence in the past tense is: "{past}"',
        f'In the past tense, the sentence becomes: "{past}"',
    )
    return rng.choice(prompts), rng.choice(responses)


def python_function(rng: random.Random) -> tuple[str, str]:
    """Draw a small Python function to write."""
    number = rng.randint(2, 30)
    name, task, value = (part.format(number) for part in rng.choice(_FUNCTIONS))
    function = f"```python\ndef {name}(number):\n    return {value}\n```"
    prompts = (
        f"Write a Python function named {name} that {task}.",
        f"Define a Python function {name}(number) that {task} and returns the result.",
    )
    responses = (
        f"Here is a Python function that {task}:\n\n{function}",
        f"The function {name} {task}:\n\n{function}",
    )
    return rng.choice(prompts), rng.choice(responses)


def extract_json(rng: random.Random) -> tuple[str, str]:
    """Draw an order to turn into JSON."""
    name, item, count = rng.choice(_NAMES), rng.choice(_ITEMS), rng.randint(2, 20)
    city = rng.choice(_CAPITALS)[1]
    order = {"name": name, "city": city, "item": item, "quantity": count}
    keys = ", ".join(order)
    sentence = f"{name} from {city} ordered {count} {item}."
    prompts = (
        f"Extract {keys} as JSON from this sentence: {sentence}",
        f"Return a JSON object with the keys {keys} for this sentence: {sentence}",
    )
    responses = (json.dumps(order), f"```json\n{json.dumps(order, indent=2)}\n```")
    return rng.choice(prompts), rng.choice(responses)


def classify_review(rng: random.Random) -> tuple[str, str]:
    """Draw a review to classify, answered with the reason."""
    label, rooms, staff = rng.choice(_REVIEWS)
    place = rng.choice(("hotel", "guest house", "hostel", "lodge"))
    review = f"The {place} was {rooms} and the staff were {staff}."
    prompts = (
        f"Is this review positive or negative? Explain why. Review: {review}",
        f'Classify the review as positive or negative and give the reason: "{review}"',
    )
    said = f"says that the {place} was {rooms} and the staff were {staff}."
    responses = (
        f"The review is {label} because it {said}",
        f"This is a {label} review. It {said}",
    )
    return rng.choice(prompts), rng.choice(responses)


def summary(rng: random.Random) -> tuple[str, str]:
    """Draw a paragraph to summarize in one sentence."""
    place = rng.choice(("library", "museum", "school", "theater", "sports club"))
    year, visitors = rng.randint(1900, 2015), f"{rng.randint(12, 95)},000"
    day = rng.choice(tuple(calendar.day_name))
    text = (
        f"The {place} opened in {year} in the center of the town. Today it has {visitors} "
        f"visitors every year. It is closed on {day}s, but it is open on all other days."
    )
    prompts = (f"Summarize this text in one sentence: {text}", f"Give a short summary of: {text}")
    responses = (
        f"The {place} opened in {year}, has {visitors} visitors a year and is closed on {day}s.",
        f"The {place}, which opened in {year}, has {visitors} visitors every year and is open "
        f"every day except {day}.",
    )
    return rng.choice(prompts), rng.choice(responses)


def date_arithmetic(rng: random.Random) -> tuple[str, str]:
    """Draw a date some days after another of the same month, answered with the addition."""
    day, days, year = rng.randint(1, 14), rng.randint(2, 14), rng.randint(2000, 2030)
    month = rng.choice(calendar.month_name[1:])
    start, end = f"{month} {day}, {year}", f"{month} {day + days}, {year}"
    prompts = (
        f"What is the date {days} days after {start}?",
        f"A course starts on {start} and ends {days} days later. On which date does it end?",
    )
    responses = (
        f"{day} + {days} = {day + days}, so the date {days} days after {start} is {end}.",
        f"Add {days} days to {start}: {day} + {days} = {day + days}. The date is {end}.",
    )
    return rng.choice(prompts), rng.choice(responses)


def translation(rng: random.Random) -> tuple[str, str]:
    """Draw a short phrase to translate."""
    english, *foreign = rng.choice(_PHRASES)
    language, phrase = rng.choice(list(zip(("French", "Spanish"), foreign, strict=True)))
    prompts = (
        f'Translate "{english}" into {language}.',
        f'Give the {language} translation of "{english}".',
        f'What is the {language} translation of "{english}"?',
    )
    responses = (
        f'The {language} translation of "{english}" is "{phrase}".',
        f'In {language}, "{english}" is translated as "{phrase}".',
    )
    return rng.choice(prompts), rng.choice(responses)


TASK_KINDS: tuple[TaskKind, ...] = (
    word_problem,
    shopping,
    capital,
    # The hardest kind for a small model stands early, so that it fills more than 5 % of every
    # file: the noise gate, set at a 95th percentile, then finds the same tail in all of them.
    how_to,
    sort_numbers,
    unit_conversion,
    upper_case,
    past_tense,
    python_function,
    extract_json,
    classify_review,
    summary,
    date_arithmetic,
    translation,
)
"""The kinds of task. Every file takes them in turn, so all files have the same mixture."""


def demo_rows(
    seed: int = 0, rows_per_shard: int = 100, validation_rows: int = 80
) -> dict[str, list[Row]]:
    """Draw the clean rows of every file, before any of them is damaged.

    No prompt comes twice with the same response, within a file or in two files.

    Args:
        seed: The seed of everything random.
        rows_per_shard: The number of rows of each training shard.
        validation_rows: The number of validation rows.

    Returns:
        The rows of each training shard, of "validation" and of "held_out", by name.
    """
    rng = random.Random(seed)
    seen: set[tuple[str, str]] = set()
    sizes = dict.fromkeys(NOISE_SHARES, rows_per_shard)
    sizes |= {"validation": validation_rows, "held_out": HELD_OUT_ROWS}
    return {name: _draw_rows(rng, size, seen) for name, size in sizes.items()}


def write_demo_data(
    root: Path, seed: int = 0, rows_per_shard: int = 100, validation_rows: int = 80
) -> None:
    """Write the training shards, the validation file and the truth about the noise.

    The files are `train/clean.jsonl`, `train/mixed.jsonl`, `train/noisy.jsonl`,
    `validation.jsonl`, `held_out.jsonl` and `truth.json`. The last one holds the seed, the share
    of noise of each shard ("shares"), and for each shard the recipe of every damaged row by its
    index written as text ("noise"). The same arguments give the same bytes.

    Args:
        root: The folder to write into, made if missing. Files of these names are replaced.
        seed: The seed of everything random.
        rows_per_shard: The number of rows of each training shard.
        validation_rows: The number of validation rows.
    """
    files = demo_rows(seed, rows_per_shard, validation_rows)
    noise: dict[str, dict[str, str]] = {}
    for number, (shard, share) in enumerate(NOISE_SHARES.items()):
        # One noise seed for all shards would damage the same row numbers in each of them.
        noise[shard] = _damage(files[shard], share, seed * len(NOISE_SHARES) + number)
        _write_atomically(root / "train" / f"{shard}.jsonl", _json_lines(files[shard]))
    for name in ("validation", "held_out"):
        _write_atomically(root / f"{name}.jsonl", _json_lines(files[name]))
    truth = {"seed": seed, "shares": NOISE_SHARES, "noise": noise}
    _write_atomically(root / "truth.json", json.dumps(truth, indent=2) + "\n")


def _sentence(rng: random.Random) -> tuple[str, str]:
    """Draw a sentence in the present and in the past tense."""
    name, (present, past) = rng.choice(_NAMES), rng.choice(_ACTIONS)
    rest = f"to {rng.choice(_PLACES)} {rng.choice(_COMPANIONS)}."
    return f"{name} {present} {rest}", f"{name} {past} {rest}"


def _draw_rows(rng: random.Random, size: int, seen: set[tuple[str, str]]) -> list[Row]:
    rows = [_draw_row(rng, TASK_KINDS[index % len(TASK_KINDS)], seen) for index in range(size)]
    rng.shuffle(rows)
    return rows


def _draw_row(rng: random.Random, kind: TaskKind, seen: set[tuple[str, str]]) -> Row:
    form = rng.random()
    if form < _PROMPT_FORM_SHARE:
        prompt, response, task = _draw_unseen(rng, kind, seen)
        return {"prompt": prompt, "response": response, "task": task}
    messages = []
    if rng.random() < _SYSTEM_PROMPT_SHARE:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    for _ in range(2 if form > 1 - _TWO_TURN_SHARE else 1):
        prompt, response, task = _draw_unseen(rng, kind, seen)
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": response})
    return {"messages": messages, "task": task}


def _draw_unseen(
    rng: random.Random, kind: TaskKind, seen: set[tuple[str, str]]
) -> tuple[str, str, str]:
    """Draw a prompt and a response that no row has yet, and the name of their kind."""
    for attempt in itertools.count():
        # A kind with short tables runs dry in large files; the kinds with numbers hardly do.
        drawn = kind if attempt < _TRIES_PER_KIND else rng.choice(TASK_KINDS)
        pair = drawn(rng)
        if pair not in seen:
            break
    seen.add(pair)
    return *pair, drawn.__name__


def _damage(rows: list[Row], share: float, seed: int) -> dict[str, str]:
    """Damage last responses in place and return the recipes by row index."""
    holders = [
        (row["messages"][-1], "content") if "messages" in row else (row, "response") for row in rows
    ]
    clean = [holder[key] for holder, key in holders]
    tasks = [row["task"] for row in rows]
    damaged = corrupt_responses(clean, share, seed, _RECIPES, groups=tasks)
    for (holder, key), (text, _) in zip(holders, damaged, strict=True):
        holder[key] = text
    return {str(index): recipe for index, (_, recipe) in enumerate(damaged) if recipe}


def _json_lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file is next to the target: a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
