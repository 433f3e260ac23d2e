"""The words that the follow-up chats draw from."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Ada Adam Agnes Ahmed Aisha Alan Albert Alex Alice Alma Amal Amelia Amir Amy Ana Andrea
    Andrew Anja Anna Anton Arthur Asha Astrid Aya Barbara Beatrix Ben Bianca Bjorn Boris
    Brian Bruno Camille Carla Carlos Carmen Cecil Chen Chloe Chris Clara Claude Colin Cora
    Cyril Daisuke Dan Dana Daniel Daria David Deborah Dennis Diana Diego Dmitri Dora Dylan
    Edgar Edith Eduardo Elena Eli Elif Elisa Ella Elsa Emil Emily Emma Enzo Eric Erika
    Esra Esther Eva Fatima Felix Fiona Flora Francis Frank Freya Frida Gabriel George Gina
    Giulia Grace Greta Gustav Hana Hannah Hans Harry Hassan Heidi Helen Henry Hiro Hugo
    Ian Ibrahim Ida Igor Ines Ingrid Irene Iris Isaac Isabel Ivan Jack Jakob James Jan
    Jana Jane Jasmin Jean Jens Jin Joan Joel John Jonas Jorge Jose Josef Judith Jules
    Julia Jun Kai Karin Karl Kate Keiko Ken Kim Klara Kofi Lara Lars Laura Lea Leila Lena
    Leo Liam Lily Lin Lisa Liv Lorenzo Louis Lucia Luis Luka Lydia Mabel Magda Malik Marco
    Maria Marie Mark Marta Martin Mary Mateo Maud Max Maya Mei Mia Michael Mila Milan Milo
    Mina Mohamed Mona Moritz Nadia Naomi Natalia Nathan Nick Nico Nina Noah Nora Olaf Oleg
    Olga Oliver Olivia Omar Oscar Otto Pablo Paul Paula Pavel Pedro Peter Petra Philip Pia
    Priya Rachel Rafael Raj Ravi Rebecca Rita Robert Robin Rosa Rose Ruben Ruth Sakura
    Sally Sam Samir Sandra Sara Sasha Selma Sergei Silvia Simon Sofia Sonja Stefan Stella
    Sven Tamara Tao Tara Theo Thomas Tim Tina Tom Tomas Toni Ulla Uma Ursula Vera Victor
    Viola Wanda Wei Wendy William Xavier Yara Yasmin Yuki Yusuf Yvonne Zara Zoe
    """
)

CITIES = _words(
    """
    Aachen Amsterdam Ankara Antwerp Athens Auckland Baku Bangkok Barcelona Basel Beirut
    Belfast Bergen Berlin Bern Bilbao Bogota Bologna Bonn Boston Bremen Brisbane Bristol
    Brussels Budapest Cairo Calgary Cardiff Chicago Cologne Cork Dakar Dallas Delhi Denver
    Detroit Dhaka Dresden Dubai Dublin Durban Edinburgh Essen Florence Frankfurt Gdansk
    Geneva Genoa Ghent Glasgow Gothenburg Graz Haifa Hamburg Hanoi Havana Helsinki Houston
    Istanbul Izmir Jakarta Kathmandu Kiel Krakow Kyiv Kyoto Lagos Leeds Leipzig Lima Linz
    Lisbon Liverpool London Lucerne Lyon Madrid Malaga Manchester Manila Melbourne Miami
    Milan Minsk Montreal Mumbai Munich Nagoya Nairobi Nantes Naples Nice Osaka Oslo Ottawa
    Oxford Palermo Paris Perth Pisa Porto Prague Pune Quebec Quito Riga Rome Rostock
    Rotterdam Salzburg Santiago Seattle Seoul Seville Shanghai Singapore Sofia Stockholm
    Stuttgart Sydney Taipei Tallinn Tampere Tokyo Toronto Toulouse Trieste Tromso Tunis
    Turin Uppsala Utrecht Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Weimar
    Yokohama York Zagreb Zurich
    """
)

COLOURS = _words(
    """
    red green blue yellow orange purple pink brown black white grey violet turquoise gold
    silver teal indigo crimson beige maroon olive scarlet ivory lilac mint coral amber
    cyan magenta navy
    """
)

FOODS = _words(
    """
    bread cheese noodles pasta pizza rice soup salad curry sushi tacos pancakes chocolate
    apples bananas cherries grapes mangoes olives potatoes tomatoes carrots mushrooms
    pumpkin beans lentils tofu fish salmon eggs honey yoghurt dumplings ramen risotto
    goulash waffles strawberries plums nuts
    """
)

ANIMALS = _words(
    """
    cat dog horse rabbit hamster parrot goat hen donkey turtle lizard snake mouse pony
    canary duck goldfish ferret tortoise gecko
    """
)

WORDS = _words(
    """
    acorn amber anchor apple arrow autumn badger balloon banana basket beach bell berry
    bird blanket boat bottle branch bread bridge bright brook brown bucket butter button
    cabin candle carpet castle cedar chair cherry circle clever cloud clover coat coffee
    copper corner cotton crane cricket crown cup dance dark deep desk door dragon dream
    drum eager eagle early earth easy echo empty fair feather fern field finger fire fish
    flag flame flower fog forest fox fresh friend frog garden gate gentle ghost glass
    glove golden grain grape grass green harbour hat hill hollow honey hope horse house
    ice island ivory jacket jar jelly jolly judge jump kettle key kind kite kitten ladder
    lake lamp lantern laugh lemon letter light lion little lively marble meadow melon
    middle mill mirror moon moss mouse music narrow needle nest night noble north oak
    ocean old olive onion open orange orchard otter owl paper parrot path peach pearl
    pebble pencil pepper piano pillow pine planet plum pocket poem pond proud puzzle queen
    quick quiet rabbit rain raven red river robin rocket roof rope rose round sand sea
    seed shadow sharp shell ship silent silver simple sister sky slow smile snow soft song
    spark spoon spring square star stone storm street strong sugar summer sun swan sweet
    table tall tea thunder tiger tower train tree tulip turtle valley velvet village
    violet violin walnut warm water wave wheat whisper white wild willow wind window
    winter wise wolf wood yellow young zebra
    """
)

NUMBERS = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty
    """
)
"""0 to 20 in words, each at its place."""

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant.",
    "Be brief.",
    "Always be polite.",
    "You are a friendly chatbot.",
    "Keep it short.",
    "You are the demo model of mlx_server.",
    "Answer in one sentence.",
)
