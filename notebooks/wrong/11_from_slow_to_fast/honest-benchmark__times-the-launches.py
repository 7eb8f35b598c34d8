# caught: so you timed launches
def benchmark(device, repeats):
    """A PretendDevice, how many calls to time -> microseconds a call."""
    device.work()
    device.synchronize()
    start = device.now()
    for _ in range(repeats):
        device.work()
    return (device.now() - start) / repeats
