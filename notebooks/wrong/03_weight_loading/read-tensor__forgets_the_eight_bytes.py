# caught: which itself starts at byte 8
def read_tensor(path, name):
    length, header = lesson.read_header(path)
    start, stop = header[name]["data_offsets"]
    with open(path, "rb") as f:
        f.seek(length + start)
        data = bytearray(f.read(stop - start))
    return torch.frombuffer(data, dtype=lesson.DTYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
