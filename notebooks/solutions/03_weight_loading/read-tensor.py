def read_tensor(path, name):
    with open(path, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        entry = json.loads(f.read(length))[name]
        start, stop = entry["data_offsets"]
        f.seek(8 + length + start)
        data = bytearray(f.read(stop - start))
    return torch.frombuffer(data, dtype=lesson.DTYPES[entry["dtype"]]).reshape(entry["shape"])
