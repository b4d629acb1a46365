# The words of the story world: which values each fact can have, how pronouns follow names, how text becomes words.
# Entry points: FACTS, DETAILS, FORMS, words, sentences, pick, domain_of.
# A domain is a tuple drawn from uniformly; a value listed twice is twice as likely.
# No word belongs to two domains, so the kind of a slot is known from its value and a corrupted slot is always visible.
import random
import re

GIRLS = ("Mia", "Lily", "Zoe", "Nora", "Ruby", "Eva", "Lucy", "Rosa", "Maya", "Clara")
BOYS = ("Max", "Leo", "Finn", "Jack", "Noah", "Oscar", "Hugo", "Ravi", "Omar", "Luke")
FRIEND_GIRLS = ("Anna", "Emma", "Ivy", "Molly", "Bella", "Grace", "Nina", "Holly")
FRIEND_BOYS = ("Ben", "Tom", "Dan", "Eli", "Kai", "Jude", "Carl", "Adam")
FACTS: dict[str, tuple[str, ...]] = {
    "hero": GIRLS + BOYS,
    "place": (
        "park", "beach", "market", "farm", "forest", "lake", "river", "school", "garden", "zoo", "castle", "village",
        "island", "harbour", "meadow", "museum"
    ),
    "pet": (
        "dog", "cat", "fox", "rabbit", "goat", "duck", "pony", "hen", "lamb", "mouse", "parrot", "turtle", "frog",
        "hamster", "puppy", "kitten"
    ),
    "pet_name": (
        "Pip", "Bobo", "Coco", "Fizz", "Momo", "Toto", "Biscuit", "Pepper", "Waffle", "Ziggy", "Nibbles", "Buttons",
        "Dash", "Rocky", "Muffin", "Socks"
    ),
    "friend": FRIEND_GIRLS + FRIEND_BOYS,
    "colour": (
        "red", "blue", "green", "pink", "white", "black", "brown", "purple", "golden", "silver", "grey", "yellow"
    ),
    "object": (
        "kite", "ball", "drum", "boat", "doll", "book", "cap", "scarf", "lamp", "key", "bell", "cup", "ring",
        "bucket", "puppet", "mask"
    ),
    "food": ("bread", "cheese", "cake", "rice", "pasta", "honey", "pie", "soup", "fruit", "salad", "popcorn", "jam"),
    "taker": ("crow", "gull", "monkey", "bear", "goose", "squirrel", "magpie", "wolf", "cow", "horse", "swan", "tiger"),
    "sad": ("sad", "upset", "worried", "lonely", "gloomy", "scared", "sorry", "hurt"),
    "finder": ("friend", "friend", "pet", "hero"),
    "spot": (
        "tree", "wall", "gate", "rock", "barn", "shed", "fence", "door", "hut", "tower", "statue", "sign", "hedge",
        "bush", "mill", "pillar"
    ),
    "ending": ("keep", "give"),
}  # fmt: skip
DETAILS: dict[str, tuple[str, ...]] = {
    "weather": ("sunny", "sunny", "windy", "cold", "warm", "cloudy", "rainy", "foggy", "snowy", "stormy"),
    "time": ("morning", "morning", "afternoon", "day"),
    "manner": ("happily", "quietly", "loudly", "gently", "slowly", "quickly", "wildly", "nicely"),
    "search": (
        "bench", "table", "log", "stone", "chair", "basket", "blanket", "bridge", "cart", "ladder", "rug", "tent"
    ),
    "glad": ("happy", "glad", "cheerful", "lucky", "merry"),
    "proud": ("proud", "thankful", "grateful", "moved", "surprised"),
}  # fmt: skip
FORMS: dict[str, tuple[str, str, str]] = {
    "She": ("hero", "She", "He"),
    "she": ("hero", "she", "he"),
    "her": ("hero", "her", "him"),
    "hers": ("hero", "her", "his"),
    "girl": ("hero", "girl", "boy"),
    "friend_girl": ("friend", "girl", "boy"),
    "friend_she": ("friend", "she", "he"),
    "friend_hers": ("friend", "her", "his"),
}
FEMALE = frozenset(GIRLS + FRIEND_GIRLS)
_WORD = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")


def words(text: str) -> list[str]:
    """Words, single digits and single punctuation marks of `text`, in order; white space is dropped."""
    return _WORD.findall(text)


def sentences(text: str) -> list[list[str]]:
    """Words of `text` cut after each full stop; the last piece may lack its stop."""
    cut: list[list[str]] = [[]]
    for word in words(text):
        cut[-1].append(word)
        if word == ".":
            cut.append([])
    return [piece for piece in cut if piece]


def pick(rng: random.Random, domain: tuple[str, ...]) -> str:
    """One entry of `domain`, each entry equally likely; uses one `rng.random()`, stable across Python versions."""
    return domain[int(rng.random() * len(domain))]


def share(domain: tuple[str, ...], value: str) -> float:
    """Probability in [0, 1] with which `pick` draws `value` from `domain`."""
    return domain.count(value) / len(domain)


def gender(name: str) -> str:
    """'girl' or 'boy' for a hero's or friend's name."""
    return "girl" if name in FEMALE else "boy"


def pronoun(form: str, name: str) -> str:
    """The word that the slot `form` (a key of FORMS) takes for the person `name`."""
    return FORMS[form][1 if name in FEMALE else 2]


def domain_of(slot: str) -> tuple[str, ...]:
    """Every word the slot can hold: a fact's values, a detail's values or the two forms of a pronoun."""
    if slot in FORMS:
        return FORMS[slot][1:]
    return FACTS[slot] if slot in FACTS else DETAILS[slot]
