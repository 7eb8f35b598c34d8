# caught: A gap in the ranking is not filled
def fit(lengths, fixed, max_tokens, longest):
    room = longest - fixed - max_tokens
    number = 0
    for length in lengths:
        if length <= room:
            room -= length
            number += 1
    return number
