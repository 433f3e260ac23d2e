"""Words that the training chats are filled with.

A model of a few million parameters learns to copy only what it cannot know by heart. So each
kind of word here is drawn from a long list or made of syllables.
"""

from __future__ import annotations

import random
import re


def several(text: str) -> tuple[str, ...]:
    """The words of `text`: a long list is easier to read without its quotes."""
    return tuple(text.split())


CITY_LIST = """Paris,Tokyo,Oslo,London,Berlin,Madrid,Rome,Vienna,Prague,Lisbon,Dublin,Athens
    Warsaw,Helsinki,Stockholm,Copenhagen,Amsterdam,Brussels,Zurich,Geneva,Bern,Basel,Munich
    Hamburg,Cologne,Frankfurt,Stuttgart,Dresden,Leipzig,Lyon,Marseille,Nice,Toulouse,Bordeaux
    Lille,Nantes,Barcelona,Valencia,Seville,Bilbao,Porto,Milan,Turin,Naples,Florence,Venice,Bologna
    Palermo,Budapest,Bucharest,Sofia,Belgrade,Zagreb,Ljubljana,Sarajevo,Skopje,Tirana,Riga,Vilnius
    Tallinn,Kyiv,Krakow,Gdansk,Brno,Graz,Salzburg,Innsbruck,Bergen,Trondheim,Gothenburg,Malmo,Aarhus
    Reykjavik,Edinburgh,Glasgow,Manchester,Liverpool,Leeds,Bristol,Cardiff,Belfast,Cork,Galway
    Istanbul,Ankara,Izmir,Cairo,Tunis,Algiers,Rabat,Casablanca,Lagos,Accra,Dakar,Nairobi,Kampala
    Kigali,Lusaka,Harare,Windhoek,Cape Town,Durban,Johannesburg,Pretoria,Addis Ababa,Khartoum
    Amman,Beirut,Baghdad,Tehran,Riyadh,Doha,Dubai,Muscat,Kabul,Karachi,Lahore,Delhi,Mumbai,Pune
    Chennai,Kolkata,Bangalore,Hyderabad,Jaipur,Kathmandu,Dhaka,Colombo,Yangon,Bangkok,Hanoi
    Saigon,Phnom Penh,Kuala Lumpur,Singapore,Jakarta,Bandung,Manila,Cebu,Taipei,Hong Kong,Beijing
    Shanghai,Shenzhen,Chengdu,Wuhan,Xian,Seoul,Busan,Osaka,Kyoto,Nagoya,Sapporo,Fukuoka,Kobe
    Ulaanbaatar,Almaty,Tashkent,Tbilisi,Yerevan,Baku,Sydney,Melbourne,Brisbane,Perth,Adelaide
    Hobart,Darwin,Auckland,Wellington,Honolulu,Anchorage,Vancouver,Toronto,Montreal,Ottawa,Calgary
    Quebec,Halifax,Winnipeg,New York,Boston,Chicago,Seattle,Portland,Denver,Dallas,Houston,Austin
    Miami,Atlanta,Detroit,Cleveland,Pittsburgh,Los Angeles,San Francisco,San Diego,Las Vegas
    Phoenix,Memphis,Nashville,New Orleans,Mexico City,Havana,Kingston,Bogota,Quito,Lima,La Paz
    Santiago,Buenos Aires,Cordoba,Montevideo,Asuncion,Brasilia,Rio de Janeiro,Sao Paulo,Caracas
    Panama City,San Jose,Guatemala City"""
CITIES = tuple(name.strip() for name in CITY_LIST.replace("\n", ",").split(","))

REGIONS = several(
    """AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ
    NM NY NC ND OH OK OR PA RI SC SD TN TX UT VT VA WA WV WI WY JP FR DE UK IT ES NO SE CA AU
    BR France Japan Spain Italy Germany Norway Canada Brazil India Kenya Texas Ohio Oregon"""
)

PEOPLE = several(
    """Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leo Mia Noah Olga Paul Rosa
    Simon Tina Uwe Vera Walter Yara Zoe Alice Bob Carol Dan Eve Frank Grace Henry Iris Jack
    Kate Liam Maya Nina Oscar Peter Quinn Rita Sam Tom Ursula Victor Wendy Xavier Yusuf Zara
    Ada Alan Amir Aisha Bruno Chen Diego Elena Farid Gita Hana Ivan Jin Kofi Lena Marco Nadia
    Omar Priya Raj Sara Tariq Uma Viktor Wei Yuki Zeno Lucy Mark Julia Erik Sofia Luca Marie
    Pedro Linda James Susan Robert Karen Daniel Laura Kevin Helen George Diana Martin Judith"""
)

NOUNS = several(
    """apple river garden window table paper stone bridge market music letter coffee bread cheese
    train ticket flower mountain ocean forest animal kitchen doctor teacher student picture
    camera engine rocket planet winter summer spring autumn morning evening holiday birthday
    meeting report budget project server client network printer battery keyboard screen button
    number color shape circle square orange lemon banana cherry carrot potato tomato onion
    pepper sugar butter chicken tiger rabbit monkey turtle dolphin eagle parrot spider horse
    kitten puppy dragon castle village island desert valley harbor airport station hotel
    museum library school office factory hospital bakery pharmacy bicycle truck wagon ladder
    hammer bucket basket bottle pillow blanket mirror candle lantern pencil notebook wallet
    jacket sweater ribbon guitar violin piano trumpet theater novel poem story secret puzzle
    recipe dinner breakfast weekend calendar message answer question reason signal error
    result order invoice payment account password backup update version release model token
    cache queue"""
)

ADJECTIVES = several(
    """red green blue yellow black white small large tiny huge old new quick slow quiet loud
    happy sad bright dark warm cold soft hard heavy light clean dirty empty full rich poor
    simple strange gentle clever lazy brave calm fresh sweet sour early late open round sharp
    smooth wild young golden silver wooden daily weekly final first second last local public
    private"""
)

SYLLABLES = several(
    """ba be bi bo bu da de di do du fa fe fi fo ga ge go gu ha he hi ho ja jo ka ke ki ko ku la
    le li lo lu ma me mi mo mu na ne ni no nu pa pe pi po qua ra re ri ro ru sa se si so su ta
    te ti to tu va ve vi vo wa we wi xa ya yo za ze zi zo bra cre dri flo gra kla pre sto tra
    vlo shi cha the"""
)
ENDS = ("", "", "n", "r", "s", "l", "m", "t", "ck", "nd", "th", "x", "ville", "ton", "burg", "ham")
# What chance must not spell.
UNWANTED = re.compile(
    "nazi|nig|neg|fag|sex|pedo|rape|shit|tit|nude|homo|dick|puta|kike|jap|sado|retar|dago|slut|ku?klux"
)

LANGUAGES = several(
    """French German Spanish Italian Portuguese Dutch Danish Norwegian Swedish Finnish Polish
    Czech Greek Turkish Arabic Hebrew Hindi Bengali Tamil Thai Vietnamese Korean Japanese
    Chinese Russian Ukrainian Romanian Hungarian Latin Welsh Irish Swahili Zulu"""
)
CURRENCIES = several(
    """USD EUR GBP JPY CHF SEK NOK DKK CAD AUD NZD CNY INR BRL MXN ZAR KRW TRY PLN CZK HUF SGD
    HKD THB"""
)


def made(rng: random.Random) -> str:
    """A word that nobody has read before, in small letters."""
    while True:
        parts = rng.choices(SYLLABLES, k=rng.choice((2, 2, 3)))
        text = "".join(parts) + rng.choice(ENDS)
        if not UNWANTED.search(text):
            return text


def city(rng: random.Random) -> str:
    """A city, made up in two draws of five."""
    return made(rng).capitalize() if rng.random() < 0.4 else rng.choice(CITIES)


def place(rng: random.Random) -> str:
    """A city, in a third of the draws with its state or country."""
    name = city(rng)
    return f"{name}, {rng.choice(REGIONS)}" if rng.random() < 0.33 else name


def person(rng: random.Random) -> str:
    return made(rng).capitalize() if rng.random() < 0.3 else rng.choice(PEOPLE)


def word(rng: random.Random) -> str:
    return made(rng) if rng.random() < 0.15 else rng.choice(NOUNS)


def phrase(rng: random.Random, least: int = 2, most: int = 3) -> str:
    """`least` to `most` words in small letters, the last one a noun."""
    count = rng.randint(least, most)
    return " ".join([*rng.choices(ADJECTIVES, k=count - 1), word(rng)])


def number(rng: random.Random, digits: int = 4) -> int:
    """A number of one to `digits` digits, each count of digits as likely."""
    return rng.randrange(1, 10 ** rng.randint(1, digits))


def identifier(rng: random.Random) -> str:
    """A name for a variable or a file: one word, or two joined by an underscore."""
    return word(rng) if rng.random() < 0.6 else f"{rng.choice(ADJECTIVES)}_{word(rng)}"


def file_path(rng: random.Random) -> str:
    ends = ("txt", "py", "md", "json", "js", "sh", "csv", "toml", "log", "html", "yaml", "c", "rs")
    folder = rng.choice(("", "", f"{word(rng)}/", "src/", "docs/", "tests/", "/tmp/", "/etc/"))
    return f"{folder}{identifier(rng)}.{rng.choice(ends)}"


def email(rng: random.Random) -> str:
    return f"{person(rng).lower()}@{made(rng)}.{rng.choice(('com', 'org', 'net', 'io'))}"
