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

POOL = [
    completion("france", "The capital of France is"),
    completion("village", "Once upon a time, in a small village by the sea,"),
    completion("fibonacci", "def fibonacci(n):\n"),
    completion("colors", "The three primary colors are"),
    completion("photosynthesis", "Photosynthesis is the process by which"),
    completion("sequence", "1, 2, 3, 5, 8, 13,"),
    completion("letter", "Dear Sir or Madam,\n\nI am writing to"),
    completion("armstrong", "In 1969, Neil Armstrong"),
    chat("chat-capital", "What is the capital of France?"),
    chat("chat-haiku", "Write a haiku about the sea."),
    chat("chat-breakfast", "List three healthy breakfast ideas."),
    chat("chat-gravity", "Explain gravity to a child in two sentences."),
    chat("chat-spanish", "Translate 'good morning' to Spanish."),
    chat("chat-product", "What is 12 times 9?"),
    completion("short", "Water boils"),
    completion("the", "The"),
    completion("json", '{"name": "Alice", "age": 30, "city": "'),
    completion("rust", "fn is_even(n: u32) -> bool {\n"),
    completion("python-class", "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push("),
    completion("shopping", "Shopping list:\n- milk\n- eggs\n- bread\n-"),
    completion("steps", "How to make tea:\n1. Boil the water.\n2."),
    completion("long", LONG),
    chat("chat-dialogue", "My name is Ada.", "Nice to meet you, Ada!", "What is my name?"),
    chat("chat-dialogue2", "I have a dog called Rex.", "Rex sounds like a good dog.", "What is my dog called?"),
    chat("chat-yes", "Is the sun a star? Answer yes or no."),
    chat("chat-color", "What color is the sky on a clear day?"),
    chat("chat-opposite", "What is the opposite of hot?"),
    chat("chat-thanks", "Thank you for your help!"),
    chat("chat-days", "How many days are in a week?"),
    chat("chat-hello", "Hello!"),
]
PROMPTS = POOL
VARIANTS = []
