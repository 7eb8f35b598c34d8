def benchmark(device, repeats):
    """A PretendDevice, how many calls to time -> microseconds a call."""
    device.work()
    device.synchronize()
    start = device.now()
    for _ in range(repeats):
        device.work()
    device.synchronize()
    return (device.now() - start) / repeats
