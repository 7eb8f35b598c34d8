"""The words and sentence templates that `data.py` builds every example from. All of them were written for this course.

A plot is a list of steps; a step is a tuple of alternatives, one of which is taken; the alternative "" leaves the step
out. A name in braces is a field of the story's state (see `data.Story`), so whatever sentence is taken, the same people
hold the same things in the same places.
"""

# ruff: noqa: SIM905 - lists of words read best as one string

GIRLS = (
    "Lily Mia Anna Ella Zoe Ruby Nora Lucy Emma Sara Rosa Ivy Alice Clara Maya Leila Hana Mei Nina Olga "
    "Tara Eva Amy Grace Kate June Wanda Stella Priya Fatima Yuki Lena"
).split()
BOYS = (
    "Tom Ben Max Sam Leo Jack Finn Noah Omar Ravi Hugo Theo Adam Luke Paul Ivan Kofi Chen Diego Karl "
    "Oscar Peter Felix Jonas Milo Tim Amir Dan Ali Bruno Kenji Lars"
).split()
NOUNS = (
    "ball kite drum book hat boat car doll bell cup lamp key coin ring shell stone box bag map flag "
    "flute whistle puppet puzzle basket blanket scarf coat button feather ribbon mirror rope ladder shovel "
    "bucket brush pencil crayon teapot spoon clock wagon train robot balloon bicycle sled skateboard top "
    "marble necklace lantern umbrella pillow candle jar vase trumpet guitar camera telescope"
).split()
COLOURS = "red blue green yellow purple orange pink white black brown silver golden".split()
SIZES = "big small tiny little shiny old new pretty soft round strange lovely".split()
ANIMALS = "dog cat bird rabbit fox duck frog mouse horse goat owl squirrel turtle bear hen pony lamb hedgehog".split()
FOODS = "apples bread soup cake cookies pears cheese plums berries pancakes rice noodles nuts honey carrots".split()
PLACES = (
    "the park|in;the garden|in;the forest|in;the river|by;the beach|on;the school|at;the library|in;the market|at;"
    "the farm|on;the lake|by;the hill|on;the meadow|in;the kitchen|in;the barn|in;the bridge|on;the harbour|at;"
    "the playground|on;the village square|in;the orchard|in;the station|at;the bakery|at;the castle|in;the field|in;"
    "the museum|in;the pond|by;the old mill|at"
).split(";")
SPOTS = (
    "under the bed|behind the door|in the tall grass|under a bench|behind a big tree|in an old box|under the table|"
    "on the roof|in a deep hole|next to the fence|under a pile of leaves|between two rocks|in the wet sand|"
    "behind the curtain|on a high branch|inside a boot|near the well|under the stairs|beside the gate|in a bush"
).split("|")
PARENTS = "Mom Dad Grandma Grandpa".split()
HELPERS = ("the teacher", "the farmer", "the baker", "the old sailor", "the librarian", "the gardener", "the postman")
BUILDS = (
    "a tree house|a sand castle|a snowman|a tower|a raft|a bird house|a little bridge|a fort|a swing|a tent|a scarecrow"
).split("|")
ADJECTIVES = (
    "hot warm cold wet dry fast slow loud quiet bright dark heavy light long short high low happy sad brave kind shy "
    "clever funny gentle hungry sleepy tired angry calm clean dirty empty full rich poor young sharp smooth rough sweet "
    "sour strong weak wide narrow deep thick thin early late easy hard safe wild"
).split()
THINGS = (
    "sun moon star cloud rain snow wind tree leaf flower grass seed root sea sand wave island road street town house "
    "roof wall window door floor table chair bed room milk water tea salt sugar egg butter bean corn king queen doctor "
    "nurse farmer sailor baker hand foot arm leg head eye ear nose mouth hair day night morning evening week month year "
    "spring summer autumn winter music song dance game story word letter number paper glass wood iron gold shoe sock "
    "shirt glove belt pocket wheel engine bridge tower garden forest river mountain valley cave desert"
).split()
VERBS = (
    "run walk jump swim fly climb sing read write draw paint cook eat drink sleep wake laugh cry smile talk "
    "listen look find lose give take bring carry push pull open close start stop build break fix wash play win help ask"
).split()
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
OPPOSITES = (
    "hot cold;big small;fast slow;happy sad;up down;day night;wet dry;full empty;light dark;high low;open closed;"
    "early late;old young;rich poor;strong weak;loud quiet;clean dirty;hard soft;long short;left right;in out;near far;"
    "thick thin;wide narrow;sweet sour;first last;yes no;heavy light;easy difficult;brave afraid;true false;begin end;"
    "push pull;give take;win lose;laugh cry;front back;over under;above below;north south;east west;good bad"
).split(";")
SOUNDS = (
    "dog says woof;cat says meow;cow says moo;duck says quack;sheep says baa;horse says neigh;frog says croak;"
    "lion says roar;bee says buzz;mouse says squeak;owl says hoot;pig says oink;hen says cluck;snake says hiss;"
    "donkey says hee-haw;bird says tweet"
).split(";")
BABIES = (
    "dog puppy;cat kitten;cow calf;duck duckling;sheep lamb;horse foal;frog tadpole;lion cub;hen chick;goat kid;"
    "pig piglet;swan cygnet;bear cub;deer fawn"
).split(";")
FACT_COLOURS = (
    "grass green;the sky blue;snow white;the sun yellow;a banana yellow;a strawberry red;coal black;milk white;"
    "a carrot orange;a leaf green;a tomato red;a lemon yellow;chocolate brown;a flamingo pink;the night black;"
    "a frog green;an orange orange;a plum purple;salt white;a cloud white"
).split(";")
LEGS = (
    "dog 4;cat 4;bird 2;spider 8;ant 6;horse 4;fish 0;snake 0;bee 6;cow 4;duck 2;frog 4;person 2;beetle 6;hen 2"
).split(";")
HOMES = (
    "bird nest;bee hive;dog kennel;horse stable;rabbit burrow;spider web;bear cave;fish water;pig sty;fox den;"
    "person house;hen coop"
).split(";")

# Openings: {intro} fields are filled by data.Story; H is the hero, he/him/his/He/His the hero's pronouns, G the friend.
OPENINGS = (
    "Once upon a time, there was a {kid} named {H}.",
    "Once there was a {trait} {kid} called {H}.",
    "{H} was a {trait} {kid} who lived near {place}.",
    "There was once a {kid} named {H}. {He} was very {trait}.",
    "In a small house near {place} lived a {kid} named {H}.",
    "One {daypart}, a {kid} named {H} woke up with a smile.",
    "This is the story of {H}, a {trait} {kid}.",
    "Long ago, in a quiet town, there lived a {trait} {kid} named {H}.",
    "{H} was a {kid}. {He} lived with {his} family near {place}.",
    "It was a {sky} {daypart}, and a {kid} named {H} could not wait to go outside.",
)
OWNS = (
    "{H} had {aT}. {He} took it everywhere.",
    "{H} loved {his} {T} more than anything else.",
    "The thing that {H} loved most was {aT}.",
    "{P} had given {him} {aT}, and {H} was very proud of it.",
    "For {his} birthday {H} had got {aT}.",
    "Every day {H} played with {his} {T}.",
    "{H} kept {aT} next to {his} bed.",
    "{His} favourite thing was {aT}. It was {size} and {C}.",
)
WANTS = (
    "More than anything, {H} wanted {aT}.",
    "{H} dreamed of having {aT}.",
    '"I wish I had {aT}," {H} often said.',
    "Every night {H} thought about {aT}.",
    "{H} did not have many toys, and {he} wished for {aT}.",
    "In the window of a shop {H} had seen {aT}, and {he} wanted it very much.",
)
WEATHER = {
    "sunny": (
        "The sun was shining and the sky was clear.",
        "It was a sunny {daypart}.",
        "The sun was warm on {his} face.",
        "There was not one cloud in the sky.",
    ),
    "windy": (
        "A strong wind was blowing.",
        "It was a windy {daypart}, and the trees were dancing.",
        "The wind pushed the clouds across the sky.",
    ),
    "rainy": (
        "It was raining, and there were puddles everywhere.",
        "Soft rain fell on the roofs.",
        "It was a rainy {daypart}, so {H} put on {his} boots.",
    ),
    "snowy": (
        "Snow lay on the ground, and everything was white.",
        "It was a cold and snowy {daypart}.",
        "Big flakes of snow fell from the sky.",
    ),
    "foggy": (
        "The air was full of fog.",
        "It was a foggy {daypart}, and one could hardly see the road.",
    ),
}
GO = (
    "One {daypart}, {H} went to {place} with {his} {N}.",
    "{H} took the {N} and walked to {place}.",
    "That {daypart} {H} carried the {N} all the way to {place}.",
    '"Let us go to {place}," said {P}, and {H} took the {N} along.',
)
MEET = (
    "There {he} met {his} friend {G}.",
    "{His} friend {G} was already there.",
    "{G}, {his} best friend, was waiting {in_place}.",
    "{He} saw {G}, who lived next door.",
    '"Hello, {H}!" called {G}, {his} friend.',
)
PLAY = (
    "They ran and laughed for a long time.",
    "{H} and {G} played until they were hungry.",
    "They played many games {in_place}.",
    "{G} told a funny story, and {H} laughed a lot.",
    "They looked at {aA} that was sitting {in_place}.",
    "They shared some {food} and sat down to rest.",
    "{AA} came by and watched them.",
    "",
    "",
)
END_HAPPY = (
    "{H} smiled all the way home.",
    "That night {H} fell asleep with a happy heart.",
    "{H} and {G} were happy, and they stayed friends for ever.",
    "It was the best day of the whole year for {H}.",
    'At dinner {H} told {P} everything. "What a day!" said {P}.',
    "When the moon came up, {H} was already asleep, with the {N} beside {him}.",
    "From that day on, {H} and {G} played together every {daypart}.",
)
MORALS = {
    "lost": ("After that, {H} always put the {N} in a safe place.", "{H} never lost the {N} again.", ""),
    "share": ("{H} learned that sharing makes a game twice as much fun.", "A thing that is shared is never lost.", ""),
    "help": ("{H} learned that a small kindness can come back big.", "It feels good to help, thought {H}.", ""),
    "work": ("{H} learned that work is light when friends help.", "Slow and steady, they had done it.", ""),
    "brave": ("{H} had been afraid, but {he} had been brave.", "Being brave does not mean having no fear.", ""),
    "kind": ("Kind words cost nothing, thought {H}.", "{H} felt warm inside.", ""),
}

PLOTS: dict[str, tuple[str, list[tuple[str, ...]]]] = {}
# Questions about each plot's story: (question, answer), true whatever alternatives the steps took.
QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {}

PLOTS["lost"] = (
    "lost",
    [
        OPENINGS,
        OWNS,
        ("{weather}", "{weather}", ""),
        GO,
        MEET,
        PLAY,
        (
            "But when it was time to go home, the {N} was gone!",
            "Then {H} looked down. Where was the {N}?",
            'Suddenly {H} cried, "Oh no! My {N} is not here!"',
            "After a while {H} saw that {his} {N} was missing.",
        ),
        (
            "{H} was very sad. {He} began to cry.",
            "{H} felt a cold lump in {his} tummy.",
            '"I have lost my {T}," {H} said, and a tear ran down {his} cheek.',
            "{H} looked here and there, but could not see it.",
        ),
        (
            '"Do not cry," said {G}. "I will help you to look for it."',
            '"We will find it together," said {G}.',
            '{G} took {his} hand. "Let us look everywhere," {ghe} said.',
            '{G} asked, "Where did you see the {N} last?"',
        ),
        (
            "They looked {spot2}, but there was only {aA}.",
            "First they looked {spot2}. Nothing was there.",
            "They asked {helper}, but {helper} had not seen any {N}.",
            "They looked {spot2}, and they asked {helper}, but the {N} was not there.",
        ),
        (
            "Then {G} looked {spot}. There was the {N}!",
            'At last {G} saw something {C} {spot}. "Here is your {N}!" {ghe} shouted.',
            "{G} went a little further and found the {N} {spot}.",
            'In the end, {G} found the {T} {spot}. "Look, {H}!" {ghe} called.',
        ),
        (
            '{H} took the {N} and held it tight. "Thank you, {G}!" {he} said.',
            '"Thank you, thank you!" said {H}, and {he} gave {G} a big hug.',
            "{H} jumped with joy and thanked {G}.",
            "{H} was so happy that {he} danced around {G}.",
        ),
        ("{moral}",),
        END_HAPPY,
    ],
)
QUESTIONS["lost"] = (
    ("What did {H} lose?", "{H} lost the {T}."),
    ("Who found the {N}?", "{G} found the {N}."),
    ("Where was the {N}?", "The {N} was {spot}."),
    ("Who has the {N} at the end?", "{H} has the {N}."),
)

PLOTS["gift"] = (
    "kind",
    [
        OPENINGS,
        OWNS,
        (
            "{H} had a good friend named {G}.",
            "{His} best friend was {G}.",
            "Next door lived {G}, and the two were good friends.",
        ),
        (
            "It was the birthday of {G}, and {H} had no present.",
            "{G} was ill and had to stay in bed.",
            "{G} was sad because {ghis} family was moving to another town.",
            "One {daypart}, {H} saw that {G} was sitting alone {in_place}.",
        ),
        (
            '"What could make {G} happy?" {H} asked {P}.',
            "{H} thought about it for a long time.",
            "{H} wanted to make {G} smile.",
        ),
        (
            '"Give something that you love," said {P}.',
            '"The best gift comes from the heart," {P} told {him}.',
            "{P} smiled and said that {he} would know what to do.",
            "",
        ),
        (
            "Then {H} looked at {his} {T}, and {he} knew what to do.",
            "{H} picked up the {N} and cleaned it until it shone.",
            "So {H} put the {N} in a box and tied {aC2} ribbon around it.",
            "{H} wrapped the {N} in {C2} paper.",
        ),
        ("{weather}", ""),
        (
            '{He} went to see {G} and said, "This is for you."',
            '"Here," said {H}. "My {N} is yours now, {G}."',
            "{H} ran to {G} and gave {ghim} the {N}.",
            "With a red face, {H} handed the {T} to {G}.",
        ),
        (
            '{G} could not believe it. "Your {T}? For me?" {ghe} asked.',
            "{G} held the {N} in both hands and smiled.",
            '"It is the best gift of all," said {G}.',
            "{G} laughed with joy and hugged {him}.",
        ),
        (
            "They played with the {N} together all {daypart} long.",
            '"We can play with it together," {G} said, and so they did.',
            "Then they ate {food} and talked until the evening.",
        ),
        ("{moral}",),
        (
            "{H} had no {N} any more, but {he} had made {his} friend happy.",
            "That night {H} thought about the smile of {G}, and {he} smiled too.",
            "On the way home {H} sang a song. {G} kept the {N} for ever.",
            "From then on, the {N} stood next to the bed of {G}.",
        ),
    ],
)
QUESTIONS["gift"] = (
    ("What did {H} give to {G}?", "{H} gave the {T} to {G}."),
    ("Who gave away the {N}?", "{H} gave away the {N}."),
    ("Who has the {N} at the end?", "{G} has the {N}."),
)

PLOTS["trade"] = (
    "kind",
    [
        OPENINGS,
        OWNS,
        GO,
        MEET,
        (
            "{G} had {aU}.",
            "{G} was holding {aU} in {ghis} hands.",
            "{G} showed {him} {aU}.",
        ),
        (
            '"What a nice {M}!" said {H}.',
            "{H} looked at the {M} and liked it very much.",
            '"Can I see your {M}?" asked {H}.',
        ),
        (
            '"And I like your {N}," said {G}.',
            "{G} could not stop looking at the {N}.",
            '{G} said, "Your {N} is so {C}! I like it."',
        ),
        (
            '"Shall we trade?" asked {H}. "My {N} for your {M}?"',
            '"I give you my {N}, and you give me your {M}," said {H}.',
            '"Let us trade for one day," said {H}.',
        ),
        (
            "{G} thought about it and said yes.",
            '"Yes, let us do it!" said {G}.',
            "{G} nodded and shook {his} hand.",
        ),
        (
            "So {H} took the {M}, and {G} took the {N}.",
            "{H} gave the {N} to {G}, and {G} gave the {M} to {H}.",
            "Now {G} had the {T}, and {H} had the {U}.",
        ),
        ("{weather}", ""),
        (
            "{H} played with the {M} all {daypart} long.",
            "{H} showed the {M} to {P}, and {P} liked it too.",
            "{H} ran home with the {U} and put it next to {his} bed.",
        ),
        (
            "{G} was happy with the {N}, and {H} was happy with the {M}.",
            "Both of them thought that they had the better thing.",
            "{G} waved with the {N}, and {H} waved with the {M}.",
        ),
        ("{moral}",),
        (
            "They stayed good friends, and they traded many more things.",
            '"That was a fair trade," said {P} in the evening.',
            "That night {H} fell asleep with the {M} in {his} arms.",
        ),
    ],
)
QUESTIONS["trade"] = (
    ("Who has the {N} at the end?", "{G} has the {N}."),
    ("Who has the {M} at the end?", "{H} has the {M}."),
    ("What did {H} get from {G}?", "{H} got the {U} from {G}."),
)

PLOTS["race"] = (
    "brave",
    [
        OPENINGS,
        (
            "{H} loved to run, and {he} was very fast.",
            "{H} was not very big, but {he} liked to run.",
            "Nobody thought that {H} could run fast.",
        ),
        (
            "One {daypart}, there was a race {in_place}.",
            "Every year there was a big race {in_place}.",
            '"Tomorrow there is a race {in_place}," said {P}.',
        ),
        (
            "The prize was {aT}.",
            "The winner would get {aT}.",
            "First prize was {aT}, and {H} wanted to win it.",
        ),
        ("{weather}", ""),
        (
            "{His} friend {G} wanted to win the {N} as well.",
            "{G}, who lived next door, was in the race too.",
            "{H} stood at the line, next to {his} friend {G}.",
        ),
        (
            '"One, two, three, go!" shouted {helper}, and everyone ran.',
            "{helper_cap} waved a flag, and off they went.",
            "A bell rang, and the race began.",
        ),
        (
            "At first {G} was in front.",
            "{G} ran as fast as the wind, and {H} was second.",
            "{H} started slowly, and {G} was far ahead.",
        ),
        (
            "Then {aA} ran across the road, and {G} fell down.",
            "But near a big tree {G} tripped on a stone.",
            "Halfway there, {G} lost a shoe and fell.",
        ),
        (
            '{H} stopped. "Are you all right?" {he} asked, and helped {ghim} up.',
            "{H} could have won, but {he} turned back to help {G}.",
            "{H} did not run on. {He} gave {G} {his} hand.",
        ),
        (
            "Hand in hand they ran on, and they came in together.",
            "They ran the last part side by side.",
            "Together they reached the end, and all the people clapped.",
        ),
        (
            '{helper_cap} laughed and gave the {N} to {H}. "This is for a good heart," {helper} said.',
            'Everyone cheered. "The {T} is for {H}," said {helper}.',
            "{H} got the {N}, because {he} had helped a friend.",
        ),
        (
            '"You earned it," said {G}.',
            "{G} clapped louder than anyone.",
            '{H} held up the {N} and said, "{G}, we can both play with it."',
        ),
        ("{moral}", ""),
        END_HAPPY,
    ],
)
QUESTIONS["race"] = (
    ("What was the prize?", "The prize was the {T}."),
    ("Who fell down?", "{G} fell down."),
    ("Who got the {N}?", "{H} got the {N}."),
)

PLOTS["build"] = (
    "work",
    [
        OPENINGS,
        (
            "One {daypart}, {H} had an idea. {He} wanted to build {build}.",
            '"I am going to build {build}," said {H} one {daypart}.',
            "{H} had always wanted to build {build}.",
        ),
        (
            "{He} asked {his} friend {G} to help.",
            "{His} friend {G} came to help {him}.",
            '"Can I help you?" asked {G}, {his} best friend.',
        ),
        (
            "They met {in_place} with everything that they needed.",
            "They went to {place} and looked for a good spot.",
            "They carried all that they could find to {place}.",
        ),
        ("{weather}", ""),
        (
            "{H} brought {aT} from home.",
            "From home {H} brought {aT}, which {he} loved.",
            "{H} had {his} {T} with {him}.",
        ),
        (
            "They worked hard all {daypart}.",
            "{G} carried and {H} put things in place.",
            "They worked and sang, and soon their hands were dirty.",
        ),
        (
            "Then everything fell down with a crash.",
            "But the wind came and pushed it all over.",
            "Then {aA} jumped on it, and it broke.",
        ),
        (
            '"It will never work," said {G}, and {ghe} sat down.',
            "{G} was angry and wanted to go home.",
            "{G} almost began to cry.",
        ),
        (
            '"We can try again," said {H}. "This time we will make it stronger."',
            '{H} took a deep breath. "Let us start again," {he} said.',
            "But {H} did not give up. {He} started again at once.",
        ),
        (
            "{helper_cap} came by and gave them some good wood.",
            "They ate some {food} first, and then they felt better.",
            "This time they worked slowly and with care.",
        ),
        (
            "When evening came, {build} stood {in_place}.",
            "At last it was done: {build} {in_place}!",
            "And then there it was, {build}, and it did not fall.",
        ),
        (
            "To finish it, {H} put the {N} on the very top.",
            "{H} put the {T} in the middle, so that all could see it.",
            "{H} set the {N} in front of it, like a little guard.",
        ),
        (
            '"We did it!" shouted {G}.',
            "{G} clapped and danced.",
            "{H} and {G} looked at it and were proud.",
        ),
        ("{moral}",),
        END_HAPPY,
    ],
)
QUESTIONS["build"] = (
    ("What did {H} build?", "{H} built {build}."),
    ("Who helped {H}?", "{G} helped {H}."),
    ("What did {H} bring from home?", "{H} brought the {T}."),
)

PLOTS["storm"] = (
    "brave",
    [
        OPENINGS,
        OWNS,
        (
            "One {daypart}, dark clouds came over the hills.",
            "One {daypart}, the sky turned grey, and the wind grew strong.",
            "That {daypart}, thunder rolled over the town.",
        ),
        (
            "{H} was {in_place} with {his} friend {G}.",
            "{H} and {his} friend {G} were playing {in_place}.",
            "{G}, {his} friend, had come to play {in_place}.",
        ),
        (
            "A gust of wind pulled the {N} out of {his} hands.",
            "The wind took the {N} and carried it away.",
            "With a loud whoosh the storm blew the {N} away.",
        ),
        (
            '"My {N}!" cried {H}.',
            "{H} ran after it, but the wind was faster.",
            '"Come back!" shouted {H}, but the {N} flew on.',
        ),
        (
            "The rain began, and they hid {spot2}.",
            '"We must hide!" said {G}, and they hid {spot2}.',
            "Big drops fell, so they sat down {spot2} and waited.",
        ),
        (
            "{H} was afraid of the thunder, and {G} held {his} hand.",
            "{G} sang a song so that {H} was not afraid.",
            "They counted to twenty and waited.",
        ),
        (
            "After a while the storm was over, and the sun came out.",
            "Then the rain stopped, and everything was quiet.",
            "At last the clouds went away, and there was a rainbow.",
        ),
        (
            "{AA} sat {spot} and made a noise.",
            "They heard {aA} and went to look.",
            "They followed the wet road and looked everywhere.",
        ),
        (
            "There, {spot}, was the {T}!",
            "And what did {H} see {spot}? The {N}!",
            "{H} looked {spot}, and there was {his} {N}.",
        ),
        (
            "It was wet and dirty, but it was not broken.",
            "{H} dried it with {his} shirt and laughed.",
            '"You are safe!" said {H}, and {he} pressed the {N} to {his} heart.',
        ),
        (
            "{G} laughed, too, and they walked home through the puddles.",
            "At home {P} made them hot soup.",
            "Then {H} and {G} ran home, where {P} was waiting.",
        ),
        ("{moral}", ""),
        END_HAPPY,
    ],
)
QUESTIONS["storm"] = (
    ("What did the wind take?", "The wind took the {T}."),
    ("Where was the {N} after the storm?", "The {N} was {spot}."),
    ("Who was with {H}?", "{G} was with {H}."),
)

PLOTS["animal"] = (
    "help",
    [
        OPENINGS,
        OWNS,
        (
            "One {daypart}, {H} heard a small sound {in_place}.",
            "One {daypart}, {H} was walking {in_place} when {he} heard someone cry.",
            "{weather} {H} was on {his} way to {place}.",
        ),
        (
            "A little {animal} was stuck {spot}.",
            "{spot_cap} sat a little {animal}. It could not get out.",
            "There was {aA} {spot}, and it was shaking with fear.",
        ),
        (
            '"Do not be afraid," said {H}. "I will help you."',
            '"You poor little {animal}," {H} said softly.',
            "{H} went closer, step by step.",
        ),
        (
            "{He} pulled, but the {animal} did not move.",
            "But the {animal} was too far away, and {his} arms were too short.",
            "{He} tried once, and {he} tried twice, but it did not work.",
        ),
        (
            "Then {he} had an idea: {his} {N} could help!",
            "{H} looked at the {N} in {his} hands. Yes, that would work!",
            "What did {he} have? Only the {T}. But that was enough.",
        ),
        (
            "With the {N}, {H} could reach the {animal} and lift it out.",
            "{H} held out the {N}, and the {animal} climbed onto it.",
            "The {animal} held on to the {N}, and {H} pulled it free.",
        ),
        (
            "The {animal} was free! It jumped around {him} three times.",
            "The {animal} looked at {him} with bright eyes.",
            "The {animal} was safe, and it made a happy noise.",
        ),
        (
            "{H} gave it some {food}, and the {animal} ate everything.",
            "{P} brought warm water and a soft cloth for the {animal}.",
            "{H} called {his} friend {G}, and they took the {animal} home.",
        ),
        (
            "From then on, the {animal} followed {H} everywhere.",
            "Every morning, the {animal} waited for {H} at the door.",
            "The next day, the {animal} came back and sat down beside the {N}.",
        ),
        ("{moral}",),
        (
            "And at night it slept next to the {N}.",
            "{H} and the {animal} were friends for ever.",
            'And when people asked, {H} said, "My {N} and I saved {aA}."',
        ),
    ],
)
QUESTIONS["animal"] = (
    ("Which animal did {H} help?", "{H} helped {aA}."),
    ("Where was the {animal}?", "The {animal} was {spot}."),
    ("What did {H} use to help the {animal}?", "{H} used the {T}."),
)

PLOTS["share"] = (
    "share",
    [
        OPENINGS,
        OWNS,
        GO,
        (
            '{G} came and asked, "May I play with your {N}?"',
            '"Can I have the {N} for a while?" asked {G}.',
            "{G}, who lived next door, wanted to play with the {N} too.",
        ),
        (
            '"No!" said {H}. "It is mine."',
            "{H} held the {N} tight and shook {his} head.",
            "{H} did not want to share, and {he} turned away.",
        ),
        (
            "{G} was sad and sat down {spot}.",
            "{G} went away and sat {spot}, all alone.",
            "So {G} looked at the ground and walked away. {gHe} sat down {spot}.",
        ),
        (
            "{H} played alone, but it was not much fun.",
            "After a while {H} was bored. The {N} was no fun without a friend.",
            "{H} looked at the {N}, and {he} felt bad.",
        ),
        (
            '"A game needs two," said {P}.',
            '{P} asked, "How would you feel, {H}?"',
            "{H} thought about what {P} always said: friends share.",
            "",
        ),
        (
            'So {H} went to {G} and said, "I am sorry."',
            'Then {H} walked over to {G}. "Sorry," {he} said.',
            '"I was not kind," {H} told {G}. "I am sorry."',
        ),
        (
            '"Here, you can have the {N} first."',
            '{He} gave {ghim} the {N}. "It is your turn."',
            '"Let us play with the {T} together," {he} said.',
        ),
        (
            "{G} smiled, and {ghis} eyes were bright.",
            "{G} was happy again and said thank you.",
            '"Thank you, {H}!" said {G}.',
        ),
        PLAY,
        (
            "They took turns until the sun went down.",
            "Now the {N} was twice as much fun.",
            "First it was the turn of {G}, then the turn of {H}, again and again.",
        ),
        ("{moral}",),
        END_HAPPY,
    ],
)
QUESTIONS["share"] = (
    ("Who wanted to play with the {N}?", "{G} wanted to play with the {N}."),
    ("Whose {N} was it?", "It was the {N} of {H}."),
    ("Where did {G} sit down?", "{G} sat down {spot}."),
)

PLOTS["bedtime"] = (
    "kind",
    [
        OPENINGS,
        OWNS,
        (
            "It was late, but {H} could not sleep.",
            "One night {H} lay in bed with open eyes.",
            '"Time for bed," said {P}, but {H} was not tired.',
        ),
        ("Outside, {aA} called in the dark.", "The moon shone into the room.", "The house was very quiet."),
        (
            '"Where is my {N}?" asked {H}. "I cannot sleep without it."',
            "Something was missing. It was the {N}!",
            "{H} reached for the {N}, but it was not there.",
        ),
        (
            "{P} looked {spot2}, but it was not there.",
            "{H} got up and looked {spot2}. No {N}.",
            "They looked {spot2}, and they found only a sock.",
        ),
        (
            "Then {P} looked {spot}, and there it was.",
            "At last {P} found the {T} {spot}.",
            '"Here it is!" said {P}. The {N} had been {spot} all the time.',
        ),
        (
            "{H} took the {N} into {his} arms.",
            '"Good night, {N}," whispered {H}.',
            "{H} put the {N} on {his} pillow.",
        ),
        (
            '"Tell me a story," said {H}, and {P} told {him} about {place}.',
            "{P} sang a song about the sea and the stars.",
            "{P} sat down beside {him} and talked about tomorrow: they would go to {place}.",
        ),
        (
            '"Will {G} come too?" asked {H}. "Yes," said {P}.',
            "{H} thought of {his} friend {G}, who was sleeping next door.",
            "",
        ),
        ("{His} eyes grew heavy.", "Soon {H} began to yawn.", "The wind hummed in the trees."),
        (
            "And then {H} was asleep, with the {T} in {his} arms.",
            "{P} turned off the light. {H} and the {N} slept until the morning.",
            "{H} dreamed that the {N} could fly, and that {he} flew with it over {place}.",
        ),
    ],
)
QUESTIONS["bedtime"] = (
    ("Who found the {N}?", "{P} found the {N}."),
    ("Where was the {N}?", "The {N} was {spot}."),
    ("What did {H} need to sleep?", "{H} needed the {T}."),
)

PLOTS["wish"] = (
    "work",
    [
        OPENINGS,
        WANTS,
        (
            "But {aT} costs a lot of money, and {H} had only two coins.",
            '"It is too dear for us," said {P}.',
            "But {he} had no money at all.",
        ),
        (
            "So {H} asked {helper} for work.",
            '"Do you need help?" {H} asked {helper}.',
            "{helper_cap} was looking for someone to help {in_place}.",
        ),
        (
            "{His} friend {G} came along to help.",
            '"I will help you," said {G}, {his} friend.',
            "{G}, {his} best friend, wanted to work, too.",
        ),
        ("{weather}", ""),
        (
            "Day after day, {H} and {G} worked {in_place}.",
            "They carried water and picked {food} {in_place}.",
            "They cleaned and they carried, and they fed the {animal}.",
        ),
        (
            "On {day}, {H} was so tired that {he} wanted to stop.",
            "It was hard work, and {H} had sore hands.",
            "Sometimes {H} thought that it would never be enough.",
        ),
        (
            '"Think of the {N}," said {G}.',
            '"Just one more day," said {G}.',
            "But {G} made {him} laugh, and they went on.",
        ),
        (
            "At the end of the week {helper} gave them a bag of coins.",
            'Then {helper} said, "You worked well," and gave {him} the money.',
            "At last the jar was full of coins.",
        ),
        (
            "{H} ran to the shop and bought the {T}.",
            "With the money {H} bought the {N} at last.",
            "{H} put the coins on the table of the shop, and then the {T} was {his_own}.",
        ),
        (
            '"We both worked for it, so it is for both of us," said {H} to {G}.',
            "{H} let {G} hold the {N} first.",
            "{H} showed the {N} to {G}, and they laughed with joy.",
        ),
        ("{moral}", ""),
        END_HAPPY,
    ],
)
QUESTIONS["wish"] = (
    ("What did {H} want?", "{H} wanted {aT}."),
    ("Who helped {H}?", "{G} helped {H}."),
    ("What did {H} buy?", "{H} bought the {T}."),
)

PLOTS["mend"] = (
    "help",
    [
        OPENINGS,
        OWNS,
        ("{weather}", ""),
        GO,
        (
            "On the way, {he} fell, and the {N} broke.",
            "Then {aA} jumped at {him}, and the {N} fell down and broke.",
            "But the {N} slipped out of {his} hands. Crack! It was broken.",
        ),
        (
            "{H} picked up the pieces and cried.",
            '"Oh no, my {N}!" said {H}.',
            "{H} sat down {spot} and was very sad.",
        ),
        MEET,
        (
            '"What is wrong?" asked {G}.',
            "{G} saw the broken {N} and wanted to help.",
            '{G} asked, "Why are you so sad, {H}?"',
        ),
        (
            "{H} showed {ghim} the pieces of the {T}.",
            '"My {N} is broken," said {H}.',
            '"It will never be the same," {H} said.',
        ),
        (
            '"I know someone who can mend it," said {G}.',
            '"Let us take it to {helper}," said {G}.',
            '"We can ask {helper}," {G} said.',
        ),
        (
            "{helper_cap} looked at the {N} and got some glue.",
            "{helper_cap} had good hands and many tools.",
            '"That is not so bad," said {helper}.',
        ),
        (
            "{H} held one part, and {G} held the other.",
            "{H} and {G} watched and kept very quiet.",
            "{G} held the lamp, and {H} handed over the tools.",
        ),
        (
            "Soon the {N} was as good as new.",
            "A little later, the {T} was whole again.",
            'After some time {helper} said, "Here is your {N}."',
        ),
        (
            "{H} thanked {helper} and gave them some {food}.",
            '"Thank you so much!" said {H}.',
            "{H} was so glad that {he} hugged {G} and {helper}.",
        ),
        ("{moral}",),
        END_HAPPY,
    ],
)
QUESTIONS["mend"] = (
    ("What broke?", "The {T} broke."),
    ("Who has the {N} at the end?", "{H} has the {N}."),
    ("Who helped {H}?", "{G} helped {H}."),
)

PLOTS["treasure"] = (
    "brave",
    [
        OPENINGS,
        (
            "One {daypart}, {H} found an old map {spot2}.",
            'One {daypart}, {P} gave {him} a map. "It shows a secret," said {P}.',
            "A letter came for {H}. In it was a map.",
        ),
        (
            "It showed the way to {place}.",
            "There was a big cross on it, right {in_place}.",
            '"Look, that is {place}!" said {H}.',
        ),
        (
            "{H} told {his} friend {G} about it, and they set out together.",
            '{H} ran to {G}, {his} friend. "Come with me!" {he} said.',
            "{G}, {his} best friend, wanted to come along.",
        ),
        ("{weather}", ""),
        (
            "They walked for a long time, and they ate {food} on the way.",
            "First they came to a river, and then to a dark wood.",
            "The way was long. {AA} walked with them for a while.",
        ),
        (
            "{G} was a little afraid, but {H} went first.",
            '"What if there is a monster?" asked {G}. {H} only laughed.',
            "It was so quiet that they could hear their own steps.",
        ),
        (
            "Then they stood {in_place}.",
            "At last they came to {place}.",
            '"This is the spot," said {H} when they were {in_place}.',
        ),
        (
            "They looked everywhere. Then {H} looked {spot}.",
            "{H} saw something {C} {spot}.",
            "Something was shining {spot}, and {H} went to look.",
        ),
        (
            "There was {aT}!",
            "It was {aT}, the finest that they had ever seen.",
            "{H} pulled it out. It was {aT}!",
        ),
        (
            '"The treasure!" shouted {G}.',
            "{G} could not believe {ghis} eyes.",
            '"What a lovely {N}!" said {G}.',
        ),
        (
            "{H} carried the {N} home with great care.",
            "{H} took the {N}, and they ran all the way home.",
            "They took turns with the {N} on the way home, and {H} put it next to {his} bed.",
        ),
        ("{moral}", ""),
        END_HAPPY,
    ],
)
QUESTIONS["treasure"] = (
    ("What did {H} find?", "{H} found {aT}."),
    ("Where was the {N}?", "The {N} was {spot}."),
    ("Who came along with {H}?", "{G} came along."),
)

# Requests that name the hero and the thing; {aT} "a red ball", {T} "red ball", {N} "ball".
REQUESTS = (
    "Tell me a story about {H} and {aT}.",
    "Tell a story about {H} and {aN}.",
    "Please tell me a story about {H} and {aT}.",
    "Can you tell me a story about {H} and the {N}?",
    "Write a story about {H} and {aT}.",
    "I want to hear a story about {H} and {aN}.",
    "Write a short story about {H} and {aT}, please.",
    "A story about {H} and {aN}, please.",
    "Story time! {H} and {aT}.",
    "Make up a story with {H} and {aT} in it.",
    "Could you write me a story about {kid_a} named {H} and {aT}?",
    "Tell me about {H} and the {T}.",
    "tell me a story about {H} and {aT}",
    "Tell me a story. The hero is {H}, and there is {aT} in it.",
)
REQUESTS_PAIR = (
    "Tell me a story about {H}, {G} and {aT}.",
    "Tell me a story about {H} and {H_his} friend {G}. They should have {aT}.",
    "Write a story about two friends, {H} and {G}, and {aT}.",
)
REQUESTS_NAME = (
    "Tell me a story about {H}.",
    "Write a story about {kid_a} named {H}.",
    "Can you tell me a story about {H}?",
    "Please tell me a story about {kid_a} called {H}.",
)
REQUESTS_THING = (
    "Tell me a story about {aT}.",
    "Write a story about {aN}.",
    "Can you tell me a story with {aT} in it?",
    "Please tell me a story about {aN}.",
)
REQUESTS_ANY = (
    "Tell me a story.",
    "Can you tell me a story?",
    "Please tell me a story.",
    "Write a short story.",
    "I want to hear a story.",
    "Tell me a bedtime story.",
    "Do you know a story?",
)
REPEAT = (
    "Repeat after me: {s}",
    "Repeat: {s}",
    "Repeat this: {s}",
    "Copy this: {s}",
    "Say this again: {s}",
    "Please repeat this exactly: {s}",
    "Please copy this text.\n{s}",
    "Repeat the following line.\n{s}",
    "Can you repeat this? {s}",
    "Say exactly this: {s}",
    "Echo: {s}",
    "Copy the next line word for word.\n{s}",
)
SUM_ASK = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "Add {a} and {b}.",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Please add {a} and {b}.",
    "Can you add {a} and {b}?",
    "{a} + {b}",
)
DIFFERENCE_ASK = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b} = ?",
    "{a}-{b}=",
    "Subtract {b} from {a}.",
    "How much is {a} - {b}?",
    "How much is {a} minus {b}?",
    "Take {b} away from {a}.",
    "{a} - {b}",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a tiny model that tells stories and answers short questions.",
    "You are a kind assistant for children.",
    "Answer in one short sentence.",
    "Be short and polite.",
    "You tell short stories.",
)
# Small talk: (questions, answers); any question of a row goes with any answer of it. {me} is the model's name.
TALK = (
    (
        ("Hello!", "Hi!", "Hello", "Hi there!", "Good morning!", "Hey!", "Good evening!"),
        ("Hello! How can I help you?", "Hi! What would you like to hear?", "Hello! Shall I tell you a story?"),
    ),
    (
        ("How are you?", "How are you today?", "Are you well?", "How do you feel?"),
        ("I am well, thank you!", "Very well, thank you. How can I help you?", "I am fine, thank you for asking."),
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Introduce yourself."),
        (
            "I am {me}, a tiny language model that comes with this course.",
            "My name is {me}. I am a very small language model, made for this course.",
        ),
    ),
    (
        ("What can you do?", "How can you help me?", "What do you know?", "What are you good at?"),
        (
            "I can tell short stories, repeat words, add small numbers and answer questions about a short text.",
            "I can tell a story, copy a text, do small sums and look things up in a list.",
        ),
    ),
    (
        ("Who made you?", "Where do you come from?", "How were you trained?", "Who trained you?"),
        ("I was trained from nothing on toy stories that a small program wrote.",),
    ),
    (
        ("Are you a real person?", "Are you a human?", "Are you alive?", "Are you a robot?"),
        ("No, I am only a tiny language model.", "No. I am a small program that predicts the next word."),
    ),
    (
        ("Are you smart?", "Do you know everything?", "Are you a big model?", "How big are you?"),
        ("No, I am very small, and I know very little.", "I am tiny: I fit into less than ten megabytes."),
    ),
    (
        ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "That was nice."),
        ("You are welcome!", "My pleasure!", "You are welcome. Ask me again!"),
    ),
    (
        ("Goodbye!", "Bye!", "See you tomorrow!", "Good night!", "Bye bye!"),
        ("Goodbye! Come back soon.", "Bye! Have a nice day.", "Goodbye, and sleep well!"),
    ),
    (
        ("Do you like stories?", "Do you like to read?", "What do you like?"),
        ("Yes, I like stories very much. Shall I tell you one?", "I like stories best of all."),
    ),
    (
        ("I am sad.", "I am not happy today.", "I feel bad.", "I had a bad day."),
        ("I am sorry to hear that. Shall I tell you a story?", "Oh, I am sorry. I hope that you feel better soon."),
    ),
    (
        ("I am happy!", "I had a good day!", "Today is my birthday!", "I feel great."),
        ("That is wonderful!", "I am glad to hear that!"),
    ),
)
UNKNOWN_ASK = (
    "What is the capital of {x}?",
    "Who was the first king of {x}?",
    "What is the price of {y} today?",
    "Who wrote the book about {y}?",
    "Explain how {y} works.",
    "What happened in {x} last year?",
    "How far is it to {x}?",
    "What is the weather in {x}?",
    "How many people live in {x}?",
    "What do you think about {y}?",
    "Write a program about {y}.",
    "Why is {y} so important?",
)
UNKNOWN_X = (
    "France China Italy Japan Brazil Egypt India Spain Kenya Peru Canada Norway London Paris Rome "
    "Beijing Cairo Berlin Moscow Boston"
).split()
UNKNOWN_Y = (
    "history science politics physics music money electricity computers law medicine engines space "
    "art sport language chemistry farming"
).split()
UNKNOWN_SAY = (
    "I do not know that. I am only a tiny model.",
    "Sorry, I do not know. I only know small things.",
    "That is too hard for me. I am a very small model.",
)
