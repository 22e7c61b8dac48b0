"""The prompts and variants that record_beams.py records."""


def completion(name, text):
    return {"name": name, "kind": "completion", "text": text}


def chat(name, *turns):
    """`turns`: the user's first, then the assistant's and the user's in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"name": name, "kind": "chat", "messages": messages}


LONG = (
    "The lighthouse at the end of the bay was built in 1868, after three ships were lost on the rocks in a single "
    "winter. Its first keeper, a retired sailor called Thomas Reed, lived there with his wife and two daughters. "
    "Every evening he climbed the 142 steps, trimmed the wick, wound the clockwork that turned the lens, and wrote "
    "the wind, the weather and the names of the passing ships in a large book. The books survived. They fill two "
    "shelves in the town's museum, and last year a group of students began to copy them into a database. They found "
    "more than they had expected: besides the weather, Reed had noted when the first swallows came, when the herring "
    "arrived, and how high the tide stood at the new moon. Scientists now use these notes to learn how the climate "
    "of the coast has changed. One of the students, who had first thought the work was dull, said that after a few "
    "weeks she felt she knew the family. The most important lesson of the project, she said, is that"
)

PROMPTS = [
    completion("france", "The capital of France is"),
    completion("fibonacci", "def fibonacci(n):\n"),
    completion("sequence", "1, 2, 3, 5, 8, 13,"),
    completion("the", "The"),
    completion("rust", "fn is_even(n: u32) -> bool {\n"),
    completion("steps", "How to make tea:\n1. Boil the water.\n2."),
    completion("long", LONG),
    chat("chat-capital", "What is the capital of France?"),
    chat("chat-gravity", "Explain gravity to a child in two sentences."),
    chat("chat-spanish", "Translate 'good morning' to Spanish."),
    chat("chat-dialogue", "My name is Ada.", "Nice to meet you, Ada!", "What is my name?"),
    chat("chat-days", "How many days are in a week?"),
]

# Prompts whose hypotheses end by themselves at width 4.
ENDING = ("chat-capital", "chat-spanish", "chat-dialogue", "chat-days")

# Which prompts are recorded again, and what differs from the plain case of width 4.
VARIANTS = [
    (ENDING, {"length_penalty": 0.0}),
    (ENDING, {"length_penalty": 0.6}),
    (ENDING, {"length_penalty": 2.0}),
    (ENDING, {"length_penalty": -0.5}),
    (ENDING, {"early_stopping": True}),
    (ENDING, {"early_stopping": "never"}),
    (ENDING, {"repetition_penalty": 1.3}),
    # The other two have no hypothesis that ends so early.
    (("chat-capital", "chat-days"), {"min_new_tokens": 8}),
    (("chat-days",), {"min_new_tokens": 8, "repetition_penalty": 1.3}),
    # The full stop (30) ends as well as <|im_end|> (2).
    (("france", "long", "chat-dialogue"), {"eos_ids": [2, 30]}),
    (("the", "chat-days"), {"max_new_tokens": 1}),
    (("the", "chat-days"), {"width": 16}),
]
