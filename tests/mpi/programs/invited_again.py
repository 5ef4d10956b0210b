"""One process is a spare, and hears what this script lets it hear: a second invitation while it answers the first."""

from __future__ import annotations

from pushsum_opt.spares import waiting

heard: list[list[tuple[int, dict[str, object]]]] = []
said: list[str] = []


def receive(tag):
    return heard.pop(0) if heard else []


def send(to, tag, **word):
    said.append(f"{word['kind']} {word.get('name', '')}".strip())
    if word == {"kind": "coming", "name": "a"}:  # the group has changed meanwhile
        heard.append([(0, invitation("b"))])
    if word == {"kind": "coming", "name": "b"}:
        heard.append([(0, {"kind": "go", "name": "b"})])


def invitation(name):
    return {"kind": "invited", "processes": [0, 1, 2], "ranks": [0, 1, 2], "name": name}


waiting.words.receive, waiting.words.send, waiting.words.dead = receive, send, set
spare = waiting.Spare(2)
heard += [[(0, {"kind": "come", "place": 1})], [(0, invitation("a"))]]
spare.wait_until_called()
names = []
while True:
    names.append(spare.wait_until_invited().name)
    if spare.accept():
        break
assert names == ["a", "b"], names
assert said == ["ready", "coming a", "ready", "coming b"], said
print("rank 0 of 1: ok", flush=True)
