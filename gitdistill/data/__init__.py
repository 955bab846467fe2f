"""People's own data: `video` reads pictures and videos, `items` lists of them with captions, `files` makes batches,
`shards` streams packed files; `base` is what all DataModules share."""

from gitdistill.data.files import FileData
from gitdistill.data.shards import ShardData
from gitdistill.data.video import FrameRule
