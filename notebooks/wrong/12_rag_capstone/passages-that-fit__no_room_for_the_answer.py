# caught: The answer needs room, too
def fit(lengths, fixed, max_tokens, longest):
    room = longest - fixed
    number = 0
    while number < len(lengths) and lengths[number] <= room:
        room -= lengths[number]
        number += 1
    return number
