def fit(lengths, fixed, max_tokens, longest):
    room = longest - fixed - max_tokens
    number = 0
    while number < len(lengths) and lengths[number] <= room:
        room -= lengths[number]
        number += 1
    return number
