# caught: is 'torch.float16', but should be 'torch.bfloat16'
def read_tensor(path, name):
    length, header = lesson.read_header(path)
    start, stop = header[name]["data_offsets"]
    with open(path, "rb") as f:
        f.seek(8 + length + start)
        data = bytearray(f.read(stop - start))
    dtype = {8: torch.int64, 4: torch.float32, 2: torch.float16}[len(data) // math.prod(header[name]["shape"])]
    return torch.frombuffer(data, dtype=dtype).reshape(header[name]["shape"])
