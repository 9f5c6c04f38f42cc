"""The local page: photos in, look, HDR photo out. `gmodiff serve` opens it; nothing outside this machine is ever asked for anything.

guard       who may ask: host names, origins, the token, sizes
workspace   the private folder: uploaded photos, work files, their removal
queue       one merge after another, with progress, time left, cancel
pictures    what the viewer shows: layers as tiles of a pyramid, histogram, pixel read-out
merging     a merge as a job: bracket to picture, and again with other settings
page        what is behind the routes: jobs, what they leave, checked files
server      the routes
command     `gmodiff serve`
"""
