# caught: Instruction, examples and question need room, too
def fit(lengths, fixed, max_tokens, longest):
    room = longest - max_tokens
    number = 0
    while number < len(lengths) and lengths[number] <= room:
        room -= lengths[number]
        number += 1
    return number
