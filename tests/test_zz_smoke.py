def test_a(project):
    o = project("caption", "--gpus", "none"); print(o); assert o.status == 0
    o = project("index", "--gpus", "none"); print(o); assert o.status == 0
    o = project("train", "--gpus", "none", "-v"); print(o); assert o.status == 0
    o = project("sample", "--gpus", "none", "-v"); print(o); assert o.status == 0
    o = project("evaluate", "--gpus", "none", "-v"); print(o); assert o.status == 0
    o = project("status"); print(o); assert o.status == 0
