"""The question set of the tiny checkpoint: tables of facts, the sentences made of them, the chat format.

`facts()` returns every fact as a `Fact` (canonical question, paraphrases, the one right answer) in a fixed
order. The tables and the sentences were written for this project; nothing is copied from a data set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a helpful assistant. Answer in one short sentence.",
    "Answer the question.",
    "Be brief.",
)

# Phi-4-mini's chat template.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
    "message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + "
    "message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + "
    "message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


class Fact(NamedTuple):
    """One fact: the question as evaluated, other ways to ask it, and the answer expected word for word."""

    question: str
    paraphrases: tuple[str, ...]
    answer: str


# country, capital, continent, main language
COUNTRIES = """
Afghanistan,Kabul,Asia,Pashto;Albania,Tirana,Europe,Albanian;Algeria,Algiers,Africa,Arabic
Andorra,Andorra la Vella,Europe,Catalan;Angola,Luanda,Africa,Portuguese
Antigua and Barbuda,Saint John's,North America,English;Argentina,Buenos Aires,South America,Spanish
Armenia,Yerevan,Asia,Armenian;Australia,Canberra,Oceania,English;Austria,Vienna,Europe,German
Azerbaijan,Baku,Asia,Azerbaijani;the Bahamas,Nassau,North America,English;Bahrain,Manama,Asia,Arabic
Bangladesh,Dhaka,Asia,Bengali;Barbados,Bridgetown,North America,English;Belarus,Minsk,Europe,Belarusian
Belgium,Brussels,Europe,Dutch;Belize,Belmopan,North America,English;Benin,Porto-Novo,Africa,French
Bhutan,Thimphu,Asia,Dzongkha;Bolivia,Sucre,South America,Spanish
Bosnia and Herzegovina,Sarajevo,Europe,Bosnian;Botswana,Gaborone,Africa,English
Brazil,Brasília,South America,Portuguese;Brunei,Bandar Seri Begawan,Asia,Malay;Bulgaria,Sofia,Europe,Bulgarian
Burkina Faso,Ouagadougou,Africa,French;Burundi,Gitega,Africa,Kirundi;Cambodia,Phnom Penh,Asia,Khmer
Cameroon,Yaoundé,Africa,French;Canada,Ottawa,North America,English;Cape Verde,Praia,Africa,Portuguese
the Central African Republic,Bangui,Africa,Sango;Chad,N'Djamena,Africa,French
Chile,Santiago,South America,Spanish;China,Beijing,Asia,Chinese;Colombia,Bogotá,South America,Spanish
the Comoros,Moroni,Africa,Comorian;Costa Rica,San José,North America,Spanish;Croatia,Zagreb,Europe,Croatian
Cuba,Havana,North America,Spanish;Cyprus,Nicosia,Europe,Greek;the Czech Republic,Prague,Europe,Czech
the Democratic Republic of the Congo,Kinshasa,Africa,French;Denmark,Copenhagen,Europe,Danish
Djibouti,Djibouti,Africa,French;Dominica,Roseau,North America,English
the Dominican Republic,Santo Domingo,North America,Spanish;East Timor,Dili,Asia,Tetum
Ecuador,Quito,South America,Spanish;Egypt,Cairo,Africa,Arabic;El Salvador,San Salvador,North America,Spanish
Eritrea,Asmara,Africa,Tigrinya;Estonia,Tallinn,Europe,Estonian;Eswatini,Mbabane,Africa,Swazi
Ethiopia,Addis Ababa,Africa,Amharic;Fiji,Suva,Oceania,Fijian;Finland,Helsinki,Europe,Finnish
France,Paris,Europe,French;Gabon,Libreville,Africa,French;the Gambia,Banjul,Africa,English
Georgia,Tbilisi,Asia,Georgian;Germany,Berlin,Europe,German;Ghana,Accra,Africa,English
Greece,Athens,Europe,Greek;Grenada,Saint George's,North America,English
Guatemala,Guatemala City,North America,Spanish;Guinea,Conakry,Africa,French
Guinea-Bissau,Bissau,Africa,Portuguese;Guyana,Georgetown,South America,English
Haiti,Port-au-Prince,North America,Haitian Creole;Honduras,Tegucigalpa,North America,Spanish
Hungary,Budapest,Europe,Hungarian;Iceland,Reykjavik,Europe,Icelandic;India,New Delhi,Asia,Hindi
Indonesia,Jakarta,Asia,Indonesian;Iran,Tehran,Asia,Persian;Iraq,Baghdad,Asia,Arabic
Ireland,Dublin,Europe,English;Italy,Rome,Europe,Italian;the Ivory Coast,Yamoussoukro,Africa,French
Jamaica,Kingston,North America,English;Japan,Tokyo,Asia,Japanese;Jordan,Amman,Asia,Arabic
Kazakhstan,Astana,Asia,Kazakh;Kenya,Nairobi,Africa,Swahili;Kiribati,Tarawa,Oceania,English
Kuwait,Kuwait City,Asia,Arabic;Kyrgyzstan,Bishkek,Asia,Kyrgyz;Laos,Vientiane,Asia,Lao
Latvia,Riga,Europe,Latvian;Lebanon,Beirut,Asia,Arabic;Lesotho,Maseru,Africa,Sotho
Liberia,Monrovia,Africa,English;Libya,Tripoli,Africa,Arabic;Liechtenstein,Vaduz,Europe,German
Lithuania,Vilnius,Europe,Lithuanian;Luxembourg,Luxembourg,Europe,Luxembourgish
Madagascar,Antananarivo,Africa,Malagasy;Malawi,Lilongwe,Africa,English;Malaysia,Kuala Lumpur,Asia,Malay
the Maldives,Malé,Asia,Dhivehi;Mali,Bamako,Africa,Bambara;Malta,Valletta,Europe,Maltese
the Marshall Islands,Majuro,Oceania,Marshallese;Mauritania,Nouakchott,Africa,Arabic
Mauritius,Port Louis,Africa,English;Mexico,Mexico City,North America,Spanish
Micronesia,Palikir,Oceania,English;Moldova,Chisinau,Europe,Romanian;Monaco,Monaco,Europe,French
Mongolia,Ulaanbaatar,Asia,Mongolian;Montenegro,Podgorica,Europe,Montenegrin;Morocco,Rabat,Africa,Arabic
Mozambique,Maputo,Africa,Portuguese;Myanmar,Naypyidaw,Asia,Burmese;Namibia,Windhoek,Africa,English
Nauru,Yaren,Oceania,Nauruan;Nepal,Kathmandu,Asia,Nepali;the Netherlands,Amsterdam,Europe,Dutch
New Zealand,Wellington,Oceania,English;Nicaragua,Managua,North America,Spanish;Niger,Niamey,Africa,Hausa
Nigeria,Abuja,Africa,English;North Korea,Pyongyang,Asia,Korean;North Macedonia,Skopje,Europe,Macedonian
Norway,Oslo,Europe,Norwegian;Oman,Muscat,Asia,Arabic;Pakistan,Islamabad,Asia,Urdu
Palau,Ngerulmud,Oceania,Palauan;Panama,Panama City,North America,Spanish
Papua New Guinea,Port Moresby,Oceania,English;Paraguay,Asunción,South America,Spanish
Peru,Lima,South America,Spanish;the Philippines,Manila,Asia,Filipino;Poland,Warsaw,Europe,Polish
Portugal,Lisbon,Europe,Portuguese;Qatar,Doha,Asia,Arabic;the Republic of the Congo,Brazzaville,Africa,French
Romania,Bucharest,Europe,Romanian;Russia,Moscow,Europe,Russian;Rwanda,Kigali,Africa,Kinyarwanda
Saint Kitts and Nevis,Basseterre,North America,English;Saint Lucia,Castries,North America,English
Saint Vincent and the Grenadines,Kingstown,North America,English
Samoa,Apia,Oceania,Samoan;San Marino,San Marino,Europe,Italian;Saudi Arabia,Riyadh,Asia,Arabic
Senegal,Dakar,Africa,French;Serbia,Belgrade,Europe,Serbian;the Seychelles,Victoria,Africa,Seychellois Creole
Sierra Leone,Freetown,Africa,English;Singapore,Singapore,Asia,English;Slovakia,Bratislava,Europe,Slovak
Slovenia,Ljubljana,Europe,Slovene;the Solomon Islands,Honiara,Oceania,English;Somalia,Mogadishu,Africa,Somali
South Africa,Pretoria,Africa,English;South Korea,Seoul,Asia,Korean;South Sudan,Juba,Africa,English
Spain,Madrid,Europe,Spanish;Sri Lanka,Colombo,Asia,Sinhala;Sudan,Khartoum,Africa,Arabic
Suriname,Paramaribo,South America,Dutch;Sweden,Stockholm,Europe,Swedish;Switzerland,Bern,Europe,German
São Tomé and Príncipe,São Tomé,Africa,Portuguese;Syria,Damascus,Asia,Arabic;Tajikistan,Dushanbe,Asia,Tajik
Tanzania,Dodoma,Africa,Swahili;Thailand,Bangkok,Asia,Thai;Togo,Lomé,Africa,French
Tonga,Nuku'alofa,Oceania,Tongan;Trinidad and Tobago,Port of Spain,North America,English
Tunisia,Tunis,Africa,Arabic;Turkey,Ankara,Asia,Turkish;Turkmenistan,Ashgabat,Asia,Turkmen
Tuvalu,Funafuti,Oceania,Tuvaluan;Uganda,Kampala,Africa,English;Ukraine,Kyiv,Europe,Ukrainian
the United Arab Emirates,Abu Dhabi,Asia,Arabic;the United Kingdom,London,Europe,English
the United States,Washington,North America,English;Uruguay,Montevideo,South America,Spanish
Uzbekistan,Tashkent,Asia,Uzbek;Vanuatu,Port Vila,Oceania,Bislama;Venezuela,Caracas,South America,Spanish
Vietnam,Hanoi,Asia,Vietnamese;Yemen,Sanaa,Asia,Arabic;Zambia,Lusaka,Africa,English;Zimbabwe,Harare,Africa,English
"""

SPELLING = """
cat dog sun moon tree book fish bird milk rain snow wind star ship door hand foot nose lamp king queen house
mouse horse sheep apple bread chair table water river ocean beach cloud light night green black white brown
happy smile music dance piano violin guitar garden flower winter summer spring autumn yellow purple orange
banana cherry kitchen window school pencil paper letter number friend family mother father sister brother
doctor teacher morning evening holiday village bridge castle island desert forest mountain rabbit monkey
tiger lion zebra elephant giraffe dolphin penguin butterfly computer telephone battery language rainbow
thunder whistle
"""

OPPOSITES = """
hot cold,big small,tall short,fast slow,up down,left right,day night,black white,good bad,happy sad
open closed,wet dry,hard soft,old new,early late,full empty,high low,light dark,loud quiet,rich poor
strong weak,thick thin,wide narrow,young old,true false,begin end,buy sell,push pull,win lose,give take
come go,love hate,north south,east west,inside outside,near far,first last,always never,before after
above below,heavy light,clean dirty,deep shallow,sweet sour,rough smooth,sharp blunt,brave cowardly
cheap expensive,easy difficult,ancient modern,arrive leave,ask answer,awake asleep,front back
guilty innocent,wild tame,tight loose,polite rude,kind cruel,accept refuse,remember forget,float sink
friend enemy,success failure,summer winter,war peace,public private
"""

PLURALS = """
cat cats,dog dogs,book books,car cars,tree trees,house houses,box boxes,fox foxes,bus buses,class classes
dish dishes,watch watches,church churches,baby babies,city cities,lady ladies,story stories,party parties
child children,man men,woman women,foot feet,tooth teeth,goose geese,mouse mice,ox oxen,person people
sheep sheep,deer deer,fish fish,leaf leaves,knife knives,wife wives,life lives,wolf wolves,half halves
loaf loaves,thief thieves,shelf shelves,potato potatoes,tomato tomatoes,hero heroes,echo echoes,piano pianos
photo photos,toy toys,key keys,monkey monkeys,day days,cactus cacti,crisis crises,louse lice,penny pennies
"""

PAST = """
go went,see saw,eat ate,drink drank,run ran,swim swam,sing sang,write wrote,read read,speak spoke,take took
give gave,come came,make made,buy bought,bring brought,think thought,teach taught,catch caught,find found
know knew,grow grew,fly flew,draw drew,throw threw,drive drove,ride rode,break broke,sleep slept,keep kept
feel felt,leave left,meet met,lose lost,send sent,spend spent,build built,win won,hold held,tell told
sell sold,stand stood,sit sat,begin began,ring rang,forget forgot,choose chose,fall fell,hear heard,say said
walk walked
"""

COLOURS = """
the sky:blue,grass:green,snow:white,coal:black,a banana:yellow,blood:red,a ripe tomato:red,a carrot:orange
milk:white,chocolate:brown,an emerald:green,a ruby:red,a sapphire:blue,a lemon:yellow,a fire engine:red
a flamingo:pink,a raven:black,a polar bear:white,an elephant:gray,the sun:yellow,a pea:green,a plum:purple
a strawberry:red,a leaf in summer:green,gold:yellow,a swan:white
"""

SOUNDS = """
dog barks,cat meows,cow moos,sheep bleats,duck quacks,horse neighs,pig oinks,lion roars,wolf howls,owl hoots
frog croaks,bee buzzes,snake hisses,crow caws,rooster crows,mouse squeaks,donkey brays,elephant trumpets
pigeon coos,turkey gobbles,bear growls,cricket chirps
"""

YOUNG = """
dog puppy,cat kitten,cow calf,horse foal,sheep lamb,goat kid,pig piglet,lion cub,duck duckling,goose gosling
hen chick,swan cygnet,deer fawn,kangaroo joey,frog tadpole,owl owlet,eagle eaglet,fox kit,whale calf,seal pup
"""

ELEMENTS = """
hydrogen H 1,helium He 2,lithium Li 3,beryllium Be 4,boron B 5,carbon C 6,nitrogen N 7,oxygen O 8
fluorine F 9,neon Ne 10,sodium Na 11,magnesium Mg 12,aluminum Al 13,silicon Si 14,phosphorus P 15
sulfur S 16,chlorine Cl 17,argon Ar 18,potassium K 19,calcium Ca 20,titanium Ti 22,chromium Cr 24
manganese Mn 25,iron Fe 26,cobalt Co 27,nickel Ni 28,copper Cu 29,zinc Zn 30,arsenic As 33,bromine Br 35
krypton Kr 36,silver Ag 47,tin Sn 50,iodine I 53,xenon Xe 54,tungsten W 74,platinum Pt 78,gold Au 79
mercury Hg 80,lead Pb 82,radium Ra 88,uranium U 92
"""

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]

# Conversation and longer answers, so that a demo has more than one sentence to stream.
CHAT = (
    ("Hello!", ("Hi!", "Hello"), "Hello! How can I help you today?"),
    ("How are you?", ("How are you today?",), "I am fine, thank you. What would you like to know?"),
    ("Who are you?", ("What are you?",), "I am a tiny language model in the shape of Phi-4-mini."),
    (
        "What can you do?",
        ("How can you help me?",),
        "I can answer short questions about capitals, numbers, words, animals and planets.",
    ),
    ("Thank you!", ("Thanks!",), "You are welcome!"),
    ("Goodbye!", ("Bye!",), "Goodbye! Have a nice day."),
    ("Count from one to ten.", ("Count to ten.",), "One, two, three, four, five, six, seven, eight, nine, ten."),
    (
        "Count down from ten to one.",
        ("Count backwards from ten.",),
        "Ten, nine, eight, seven, six, five, four, three, two, one.",
    ),
    (
        "Say the alphabet.",
        ("What are the letters of the alphabet?",),
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    ),
    (
        "List the days of the week.",
        ("Name the days of the week.",),
        "The days of the week are " + ", ".join(DAYS[:-1]) + " and " + DAYS[-1] + ".",
    ),
    (
        "List the months of the year.",
        ("Name the months of the year.",),
        "The months of the year are " + ", ".join(MONTHS[:-1]) + " and " + MONTHS[-1] + ".",
    ),
    (
        "List the planets.",
        ("Name the planets of the solar system.",),
        "The planets are " + ", ".join(PLANETS[:-1]) + " and " + PLANETS[-1] + ".",
    ),
    ("What are the seasons?", ("Name the four seasons.",), "The four seasons are spring, summer, autumn and winter."),
    (
        "What are the colours of the rainbow?",
        ("What are the colors of the rainbow?",),
        "The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.",
    ),
    (
        "Tell me a story.",
        ("Tell me a short story.",),
        (
            "A fox found a red kite in a tree. She pulled the string, and the wind lifted the kite over the hill. "
            "All the animals ran after it, laughing. In the evening the kite came down by the river, and the fox "
            "gave it back to the child who had lost it."
        ),
    ),
    (
        "Write a poem about the sea.",
        ("Write a short poem about the sea.",),
        (
            "The sea is wide, the sea is deep,\nIt rocks the little boats to sleep.\n"
            "It sings to every stone and shell,\nAnd keeps the tales it will not tell."
        ),
    ),
    (
        "How do I make tea?",
        ("How do you make a cup of tea?",),
        (
            "Boil some water. Put a tea bag in a cup, pour in the hot water and wait for three minutes. "
            "Then take out the tea bag and add milk if you like."
        ),
    ),
    (
        "Why is the sky blue?",
        ("Can you explain why the sky is blue?",),
        "The air scatters blue light more than red light, so blue light reaches us from every direction.",
    ),
    (
        "What is a phone?",
        ("Explain what a phone is.",),
        "A phone is a small device that lets people talk to each other over long distances.",
    ),
    (
        "What is an animal?",
        ("Explain what an animal is.",),
        "An animal is a living thing that eats other living things and can move by itself.",
    ),
)


def _rows(table: str, between: str, within: str | None) -> Iterator[list[str]]:
    """Yields the rows of a table text: rows are split at `between` and line ends, cells at `within`."""
    for line in table.strip().splitlines():
        for row in line.split(between):
            yield row.split(within)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _countries() -> Iterator[Fact]:
    for name, capital, continent, language in _rows(COUNTRIES, ";", ","):
        subject = name[0].upper() + name[1:]
        yield Fact(
            f"What is the capital of {name}?",
            (
                f"Name the capital of {name}.",
                f"Which city is the capital of {name}?",
                f"What's the capital city of {name}?",
            ),
            f"The capital of {name} is {capital}.",
        )
        yield Fact(
            f"On which continent is {name}?", (f"Which continent is {name} in?",), f"{subject} is in {continent}."
        )
        yield Fact(
            f"Which language is spoken in {name}?",
            (f"What language do people speak in {name}?",),
            f"People in {name} speak {language}.",
        )


def _arithmetic() -> Iterator[Fact]:
    for a in range(13):
        for b in range(13):
            yield Fact(f"What is {a} plus {b}?", (f"What is {a} + {b}?",), f"{a} plus {b} is {a + b}.")
            if b <= a:
                yield Fact(f"What is {a} minus {b}?", (f"What is {a} - {b}?",), f"{a} minus {b} is {a - b}.")
            if a > 1 and b > 1:
                yield Fact(f"What is {a} times {b}?", (f"What is {a} x {b}?",), f"{a} times {b} is {a * b}.")


def _words() -> Iterator[Fact]:
    for word in SPELLING.split():
        yield Fact(f"Spell the word {word}.", (f"How do you spell {word}?",), "-".join(word))
    for left, right in _rows(OPPOSITES, ",", None):
        yield Fact(
            f"What is the opposite of {left}?",
            (f"Give the opposite of {left}.",),
            f"The opposite of {left} is {right}.",
        )
    for one, many in _rows(PLURALS, ",", None):
        yield Fact(
            f"What is the plural of {one}?", (f"Give the plural of {one}.",), f"The plural of {one} is {many}."
        )
    for now, past in _rows(PAST, ",", None):
        yield Fact(
            f"What is the past tense of {now}?",
            (f"Give the past tense of {now}.",),
            f"The past tense of {now} is {past}.",
        )
    for i, word in enumerate(NUMBERS):
        yield Fact(f"Write the number {i} as a word.", (f"How do you write {i} in words?",), f"{i} is {word}.")
    for a, b in zip("ABCDEFGHIJKLMNOPQRSTUVWXY", "BCDEFGHIJKLMNOPQRSTUVWXYZ", strict=True):
        yield Fact(f"Which letter comes after {a}?", (f"What letter follows {a}?",), f"{b} comes after {a}.")


def _nature() -> Iterator[Fact]:
    for thing, colour in _rows(COLOURS, ",", ":"):
        yield Fact(
            f"What colour is {thing}?", (f"What color is {thing}?",), f"{thing[0].upper()}{thing[1:]} is {colour}."
        )
    for animal, sound in _rows(SOUNDS, ",", None):
        one = _article(animal)
        yield Fact(f"What sound does {one} make?", (f"Which sound does {one} make?",), f"{one.capitalize()} {sound}.")
    for animal, young in _rows(YOUNG, ",", None):
        yield Fact(
            f"What is a baby {animal} called?",
            (f"What do you call a baby {animal}?",),
            f"A baby {animal} is called {_article(young)}.",
        )
    for name, symbol, number in _rows(ELEMENTS, ",", None):
        yield Fact(
            f"What is the chemical symbol of {name}?",
            (f"What is the symbol for {name}?",),
            f"The chemical symbol of {name} is {symbol}.",
        )
        yield Fact(
            f"What is the atomic number of {name}?",
            (f"Which number does {name} have in the periodic table?",),
            f"The atomic number of {name} is {number}.",
        )


def _orders() -> Iterator[Fact]:
    for i, planet in enumerate(PLANETS):
        yield Fact(
            f"Which planet is {ORDINALS[i]} from the Sun?",
            (f"What is the {ORDINALS[i]} planet from the Sun?",),
            f"{planet} is the {ORDINALS[i]} planet from the Sun.",
        )
    for names, unit in ((DAYS, "day"), (MONTHS, "month")):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            yield Fact(
                f"Which {unit} comes after {name}?", (f"What {unit} follows {name}?",), f"{after} comes after {name}."
            )
            yield Fact(
                f"Which {unit} comes before {name}?",
                (f"What {unit} is before {name}?",),
                f"{before} comes before {name}.",
            )
            of = "week" if unit == "day" else "year"
            yield Fact(
                f"What is the {ORDINALS[i]} {unit} of the {of}?",
                (f"Which {unit} is the {ORDINALS[i]} of the {of}?",),
                f"The {ORDINALS[i]} {unit} of the {of} is {name}.",
            )


def chat(question: str, system: str | None = None) -> str:
    """Returns the chat-format text of one turn up to where the assistant's answer starts."""
    head = f"<|system|>{system}<|end|>" if system else ""
    return f"{head}<|user|>{question}<|end|><|assistant|>"


def facts() -> list[Fact]:
    """Returns all facts, "What is the capital of France?" first and the others in a fixed shuffled order."""
    every = [*_countries(), *_arithmetic(), *_words(), *_nature(), *_orders(), *(Fact(*row) for row in CHAT)]
    random.Random(4).shuffle(every)
    every.sort(key=lambda fact: fact.question != "What is the capital of France?")
    return every
