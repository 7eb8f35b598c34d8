# caught: The first call compiles, and you count it
def benchmark(device, repeats):
    """A PretendDevice, how many calls to time -> microseconds a call."""
    start = device.now()
    for _ in range(repeats):
        device.work()
    device.synchronize()
    return (device.now() - start) / repeats
