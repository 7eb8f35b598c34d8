# caught: the embedding needs an all-reduce as well
def largest_collective(reading, size, layers):
    """`reading`: seconds that one rank reads weights in a step -> the seconds a collective may take at most."""
    return (reading - reading / size) / (2 * layers)
