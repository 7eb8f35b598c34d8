# caught: The warm-up's kernel still runs when you start the clock
def benchmark(device, repeats):
    """A PretendDevice, how many calls to time -> microseconds a call."""
    device.work()
    start = device.now()
    for _ in range(repeats):
        device.work()
    device.synchronize()
    return (device.now() - start) / repeats
