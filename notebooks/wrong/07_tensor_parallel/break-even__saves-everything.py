# caught: only 4 of the 8 ms are saved
def largest_collective(reading, size, layers):
    """`reading`: seconds that one rank reads weights in a step -> the seconds a collective may take at most."""
    return reading / (2 * layers + 2)
