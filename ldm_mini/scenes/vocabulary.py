"""What Emoji Scenes can show: the names behind every index of a batch, and which combinations are held out."""

UNIT = 256  # places and sizes in a picture are whole numbers of its 1/256: the same scene at every number of pixels
STYLES = ("noto", "twemoji", "fluent_flat", "fluent_3d")
NOUNS = (
    "car", "balloon", "umbrella", "shirt", "apple", "star", "fish", "butterfly", "guitar", "gift", "book", "heart",
    "boat", "bus", "rocket", "bird", "cap", "flower", "dog", "cat", "rabbit", "bear", "panda", "frog", "penguin",
    "owl", "lion", "pig", "octopus", "whale", "turtle", "ladybug", "bee", "banana", "strawberry", "carrot", "pizza",
    "burger", "cake", "donut", "mushroom", "cactus", "tree", "pine", "sunflower", "house", "plane", "bicycle",
    "clock", "robot", "snowman", "teddy", "crown", "key", "diamond", "ball", "drum", "camera", "sun", "moon",
    "cloud", "lemon", "mug", "duck",
)  # the order of the sprite sheets: index = `class` and `labels` of a batch
RECOLORABLE = (
    "heart", "star", "key", "cap", "shirt", "fish", "apple", "bird", "balloon", "umbrella", "flower", "book",
    "gift", "guitar", "car", "butterfly", "octopus", "teddy", "mushroom", "diamond",
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")  # index = `colors` of a batch
PLAIN = COLORS + ("white", "gray", "black")
GROUND_TOP = {"meadow": 164, "beach": 172, "snow": 156, "desert": 156, "night": 172, "under water": 224}  # in units
PLACES = tuple(GROUND_TOP)
BACKGROUNDS = PLAIN + PLACES  # index = `background` of a batch: ten plain colours, then six places
STUFF = ("plain", "sky", "grass", "sea", "sand", "snow", "night sky", "dark ground")
SEMANTIC = STUFF + NOUNS  # index = one pixel of `semantic`

PLACE_KIND = {  # where a noun belongs in a place; all other nouns go anywhere
    **dict.fromkeys("balloon star butterfly rocket bird bee plane sun moon cloud".split(), "sky"),
    **dict.fromkeys("fish boat octopus whale turtle duck".split(), "water"),
    **dict.fromkeys("car bus flower dog cat rabbit bear panda frog penguin owl lion pig ladybug mushroom cactus tree "
                    "pine sunflower house bicycle robot snowman teddy".split(), "ground"),
}
CLASHES = {  # background: nouns and colours that would be hard to see on it
    "red": "red ladybug strawberry clock drum",
    "orange": "orange cat bear lion carrot pizza burger crown sun moon",
    "yellow": "yellow cat lion bee banana pizza sunflower crown sun moon lemon",
    "green": "green frog turtle cactus tree pine", "blue": "blue whale plane", "purple": "purple", "pink": "pink pig",
    "white": "rocket rabbit panda snowman ball cloud mug", "gray": "bus rabbit plane robot camera cloud duck",
    "black": "penguin camera", "meadow": "green", "under water": "blue", "desert": "orange",
}
CLASHES = {background: frozenset(CLASHES.get(background, "").split()) for background in BACKGROUNDS}

NOUN_INDEX = {noun: index for index, noun in enumerate(NOUNS)}
COLOR_INDEX = {color: index for index, color in enumerate(COLORS)}
BACKGROUND_INDEX = {name: index for index, name in enumerate(BACKGROUNDS)}
STYLE_INDEX = {style: index for index, style in enumerate(STYLES)}

# Held-out combinations, in Latin-square patterns: each noun, colour and place stays common, some never meet.
HELDOUT_COLORS = {noun: frozenset(COLORS[(3 * i + step) % 7] for step in ((1, 3) if i % 2 else (1,)))
                  for i, noun in enumerate(RECOLORABLE)}
HELDOUT_PLACE = {noun: PLACES[(5 * i + 2 * (i // 6) + 5) % 6] for i, noun in enumerate(NOUNS)}


def heldout_relation(first: str, second: str, relation: str) -> bool:
    """Whether `first` is never left of ("row") or above ("column") `second` in training; one ordered pair in 16."""
    return (NOUN_INDEX[first] * 5 + NOUN_INDEX[second] * 3 + 7 * (relation == "column")) % 16 == 0
