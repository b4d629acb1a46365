# What our own prompts are made of: templates by kind, and the words that fill their gaps.
# Entry points: TEMPLATES, WORDS, WEIGHTS. A gap is {word}, {a word} with its article, or {word1}, {word2} where two of
# one list must differ. All of it was written for this file; no sentence is taken from a data set.
"""Templates and words of the prompt writer."""

from __future__ import annotations

from collections.abc import Mapping

WEIGHTS: Mapping[str, int] = {
    "question": 4, "list": 3, "explanation": 4, "story": 3, "rewriting": 3, "arithmetic": 3, "definition": 3,
    "comparison": 2, "advice": 3, "message": 2, "sentence": 2,
}  # fmt: skip
"""Prompts of each kind in every round of the writer."""

ASKED = """
question
  What does {a animal} eat?
  Where does {a animal} sleep?
  How do you make {food}?
  What is {a tool} used for?
  Why do people like {hobby}?
  What happens to {material} when it gets {state}?
  What can you see in {a place}?
  What does {a job} do all day?
  How can you tell that {food} has gone bad?
  Is {a animal1} bigger than {a animal2}?
  What should I bring to {a place}?
  What is {material} used for?
  How do you clean {a tool}?
  Who uses {a tool} at work?
  What do people do in {season} for {hobby}?
  How long does it take to learn {hobby}?
  Why is {topic} important?
  Can you keep {a animal} at home?
list
  List {count} things you can find in {a place}.
  Name {count} kinds of {category}.
  Give me {count} reasons to try {hobby}.
  List {count} things {a job} needs.
  Name {count} things that are {quality}.
  Give {count} ideas for {a color} {thing}.
  List {count} steps for making {food}.
  Write a list of {count} words about {season}.
  Name {count} things you can make from {material}.
  List {count} questions to ask {a job}.
  Give {count} examples of {category} that are {quality}.
  Suggest {count} names for {a animal}.
explanation
  Explain {topic} to a child.
  Explain in {count} sentences how {topic} works.
  Why does {topic} matter?
  Explain why {material} is {quality}.
  Describe {a place} in {season}.
  Describe {a animal} to someone who has never seen one.
  Explain how {a tool} works.
  Explain step by step how to make {food}.
  Tell me what {a job} has to learn.
  Explain the main idea of {topic}.
  Describe the work of {a job} in {count} sentences.
  What is {topic}, and where do we meet it?
  Explain why {a animal} needs to sleep.
story
  Write a short story about {a animal} who {wish}.
  Tell a story about {a job} and {a animal}.
  Write {count} sentences about {name}, who lost {a thing} in {a place}.
  Write a story that begins in {a place} and ends with {a thing}.
  Tell me a story about {name1}, who {wish}, and {name2}, who helps.
  Write a funny story about {a tool} that {wish}.
  Write a short poem about {a animal} in {season}.
  Continue this story: One {season} morning, {name} found {a thing} in {a place}.
  Write a bedtime story about {a animal} and {a color} {thing}.
  Invent a story about {a job} who {wish}.
rewriting
  Rewrite this sentence in the past tense: "{name} {does} in the {place} every {day}."
  Turn this into a question: "{name} {did} in the {place} on {day}."
  Make this sentence more polite: "Give me the {thing} before {day}."
  Write the opposite of this sentence: "The {thing} is {quality} and {color}."
  Shorten this sentence: "On {day}, {name} went to the {place} to find the {thing} that was {color}."
  Correct the mistakes in this sentence: "{name} have two {color} {thing} and he like it."
  Say this in other words: "{name} {did} and then bought {food}."
  Rewrite this sentence so that it sounds exciting: "{name} saw {a animal} near the {place}."
  Put these words into one sentence: {thing}, {animal}, {place}, {season}.
  Change the person in this sentence from "he" to "they": "He {does} when it is {season}."
arithmetic
  What is {number1} plus {number2}?
  What is {number1} times {few1}?
  What is half of {even}?
  {name} has {number} coins and gets {few} more. How many coins does {name} have now?
  A {thing} costs {few1} dollars. How much do {few2} of them cost?
  There are {few1} boxes with {few2} apples in each. How many apples are there?
  {name1} is {few} years older than {name2}, who is {number}. How old is {name1}?
  How many minutes are {few} hours?
  What is {number} percent of 100?
  Which is bigger, {number1} or {number2}?
  A bus leaves with {number} people. At the {place}, {few} more get on. How many people are on the bus?
  Count from {few} to {number} in steps of {few}.
  How many days are {few} weeks and {number} days?
definition
  What is {a tool}?
  Define the word {abstract}.
  What does {abstract} mean?
  What is {a place}?
  What do we mean by {topic}?
  Give a short definition of {category}.
  What is {a job}?
  Explain the word {abstract} with an example about {a animal}.
  What is {material}?
  What is the difference in meaning between {abstract1} and {abstract2}?
  Use the word {abstract} in a sentence about {a job}.
comparison
  What is the difference between {a animal1} and {a animal2}?
  Compare {material1} and {material2}.
  Which is better for a beginner, {hobby1} or {hobby2}?
  How is {a job1} different from {a job2}?
  Name one thing that {a tool1} and {a tool2} have in common.
  Is {season1} or {season2} better for {hobby}?
  Compare {food1} and {food2} in {count} sentences.
advice
  I want to start {hobby}. What should I do first?
  My friend is afraid of {a animal}. How can I help?
  How can I remember {topic} better?
  I have to talk to {a job} on {day}. What should I say?
  Give me a tip for cooking {food}.
  How do I choose a good {tool}?
  I am bored in {season}. What can I do in {a place}?
  How can I become {a job}?
  What should I do if I find {a animal} in my {place}?
  How can I save money when buying {a thing}?
  I feel tired every {day}. What could help?
message
  Write a short letter to {a job} about {a thing}.
  Write an invitation to a party in {a place} on {day}.
  Write a thank-you note to {name} for {a color} {thing}.
  Write a message to {name} saying that the {thing} is ready on {day}.
  Write a sign for {a place} where {a animal} lives.
  Write an advertisement for {a color} {thing}.
  Write a polite email asking {a job} for help with {topic}.
  Write a postcard from {a place} in {season}.
sentence
  Write one sentence with the words {animal} and {thing}.
  Write a sentence about {food} that sounds {quality}.
  Give me a sentence that describes {a color} {thing}.
  Write a sentence in which {name} {did}.
  Finish this sentence: The {animal} went to the {place} because
  Write a riddle about {a tool}.
  Finish this sentence: If I were {a job}, I would
  Write a slogan for {food}.
"""

LISTED = """
animal
  ant, badger, bear, bee, butterfly, camel, cat, chicken, cow, crab, crow, deer, dog, dolphin, donkey, duck, eagle,
  elephant, fish, fox, frog, giraffe, goat, goose, hamster, hedgehog, horse, kangaroo, lion, lizard, monkey, mouse,
  octopus, otter, owl, parrot, penguin, pig, pigeon, rabbit, rat, seal, shark, sheep, snail, snake, spider,
  squirrel, swan, tiger, turtle, whale, wolf
place
  airport, attic, bakery, barn, beach, bridge, castle, cave, cellar, church, city, desert, factory, farm, forest,
  garden, harbor, hospital, hotel, island, jungle, kitchen, lake, library, market, meadow, mountain, museum, office,
  park, playground, pond, river, school, shop, stadium, station, street, theater, tower, valley, village, workshop,
  zoo
tool
  axe, bicycle, broom, brush, bucket, calculator, camera, candle, clock, compass, computer, drill, fork, hammer,
  kettle, key, knife, ladder, lamp, lock, microscope, mirror, needle, oven, pencil, phone, pump, radio, rope, ruler,
  saw, scale, shovel, spoon, telescope, thermometer, umbrella, wheel, whistle, wrench
thing
  backpack, ball, basket, bell, blanket, boat, book, bottle, box, bracelet, cap, chair, coat, cup, doll, drum,
  envelope, flag, glove, hat, jacket, kite, lantern, letter, map, mask, necklace, notebook, painting, pillow,
  puppet, ring, scarf, ship, shoe, sofa, suitcase, table, ticket, toy, train, vase, violin, wallet, watch
job
  actor, architect, artist, baker, barber, carpenter, chemist, cook, dancer, dentist, doctor, driver, electrician,
  engineer, farmer, firefighter, fisherman, gardener, judge, lawyer, librarian, mechanic, miner, musician, nurse,
  painter, photographer, pilot, plumber, sailor, scientist, shoemaker, singer, tailor, teacher, translator, waiter,
  writer
food
  apple pie, bean soup, bread, butter, carrot salad, cheese, chocolate cake, coffee, fried rice, honey, hot
  chocolate, ice cream, jam, lemonade, lentil stew, mashed potatoes, mushroom sauce, noodles, oatmeal, olive oil,
  omelettes, onion soup, orange juice, pancakes, peanut butter, pizza, popcorn, pumpkin soup, sandwiches, tea,
  tomato sauce, vegetable curry, yogurt
material
  aluminium, brick, cardboard, chalk, clay, concrete, copper, cork, cotton, glass, gold, ice, iron, leather, marble,
  paper, plastic, rubber, salt, sand, silk, silver, steel, stone, sugar, water, wax, wood, wool
topic
  addition, climate, democracy, electricity, evaporation, evolution, friction, gravity, insurance, light, magnetism,
  memory, money, music, photosynthesis, recycling, sleep, sound, tides, the calendar, the food chain, the heart, the
  internet, the moon, the seasons, the solar system, the water cycle, time zones, trade, traffic, voting, weather,
  the alphabet, the brain, bridges, earthquakes, fire, history, maps, numbers, rainbows, stars, volcanoes, wind
hobby
  baking, bird watching, board games, camping, chess, climbing, collecting stamps, cycling, dancing, drawing,
  fishing, gardening, hiking, juggling, knitting, learning a language, origami, painting, photography, playing the
  guitar, playing the piano, pottery, reading, rowing, running, sailing, sewing, singing, skating, skiing, surfing,
  swimming, woodwork, writing, yoga
category
  birds, boats, buildings, clothes, colors, dances, desserts, drinks, emotions, festivals, flowers, fruits,
  furniture, games, holidays, insects, jobs, languages, metals, musical instruments, planets, rocks, shapes, shoes,
  spices, sports, tools, toys, trees, vegetables, vehicles, weather
abstract
  ambition, balance, bravery, change, choice, comfort, courage, curiosity, danger, distance, doubt, duty, effort,
  envy, failure, fairness, freedom, friendship, generosity, gratitude, habit, harmony, honesty, hope, humor,
  imagination, justice, kindness, knowledge, loyalty, luck, patience, peace, pride, progress, promise, respect,
  risk, safety, silence, success, surprise, trust, truth, victory, wisdom
quality
  bright, cheap, clean, cold, dangerous, dry, expensive, fast, fragile, hard, heavy, hot, huge, light, loud, narrow,
  old, quiet, rare, rough, round, sharp, simple, slow, small, smooth, soft, strange, strong, sweet, tall, thin,
  useful, warm, wet, wide
state
  cold, dirty, dry, hot, old, wet
color
  black, blue, brown, golden, gray, green, orange, pink, purple, red, silver, white, yellow
season
  autumn, spring, summer, winter
day
  Friday, Monday, Saturday, Sunday, Thursday, Tuesday, Wednesday
name
  Ada, Adam, Alice, Amir, Anna, Ben, Carla, Chen, Clara, Daniel, Diego, Elena, Emil, Emma, Fatima, Felix, Grace,
  Hana, Hugo, Ida, Ivan, Jonas, Julia, Karim, Lara, Leo, Lina, Luca, Maria, Max, Mei, Mila, Nadia, Nina, Noah, Olga,
  Omar, Oscar, Paul, Petra, Rosa, Sam, Sofia, Tara, Theo, Vera, Yusuf, Zoe
wish
  cannot sleep, forgot a birthday, learns to share, looks for a friend, makes a mistake, wants to fly, wants to be
  brave, wants to learn to read, wants to see the sea, hears a strange noise, finds a secret door, travels through
  the snow, builds a house, wins a race, tells a small lie, moves to a new town, never gives up, plans a surprise,
  is afraid of the dark, keeps a promise
does
  walks alone, sings loudly, reads a book, helps a friend, eats lunch, waits for the bus, paints a picture, plays
  with a ball, writes a letter, takes a break, feeds the birds, looks for flowers
did
  walked alone, sang loudly, read a book, helped a friend, ate lunch, waited for the bus, painted a picture, played
  with a ball, wrote a letter, took a break, fed the birds, looked for flowers
count
  two, three, four, five, six, seven
"""


def _sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        if line.startswith(" "):
            found[next(reversed(found))].append(line.strip())
        else:
            found[line] = []
    return found


TEMPLATES: Mapping[str, tuple[str, ...]] = {kind: tuple(lines) for kind, lines in _sections(ASKED).items()}
WORDS: Mapping[str, tuple[str, ...]] = {
    "few": tuple(map(str, range(2, 13))),
    "number": tuple(map(str, range(13, 100))),
    "even": tuple(map(str, range(24, 200, 2))),
    **{name: tuple(" ".join(lines).split(", ")) for name, lines in _sections(LISTED).items()},
}
