def largest_collective(reading, size, layers):
    """`reading`: seconds that one rank reads weights in a step -> the seconds a collective may take at most."""
    saved = reading - reading / size
    return saved / (2 * layers + 2)
