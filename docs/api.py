"""The API of an exported cell, as MyST Markdown: Sphinx's own directives, made from the source without importing it.

Signatures keep the spelling of the source (`Tensor`, not `torch.Tensor`), and docments become lists of parameters.
"""
import ast, io, tokenize
from nbdev.doclinks import patch_name

DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef

def public(name): return not name.startswith('_') or name.startswith('__')

def comments(source):
    "Line number → comment, and the lines that hold nothing else."
    toks = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type==tokenize.COMMENT]
    return {t.start[0]: t.string.lstrip('#: ').strip() for t in toks},{t.start[0] for t in toks if not t.line[:t.start[1]].strip()}

def docments(places, notes, alone):
    "Name → comment for (line, name) `places`: the one on the last line of a name, or else those right above it; names in one line share it."
    out,last = {},dict(places)
    for line,name in places:
        if last[line]=='return'!=name: continue  # in one line with the result, which has the comment
        text,above = notes.get(line),line-1
        while line not in notes and above in alone: text,above = f'{notes[above]} {text or ""}'.strip(),above-1
        if text: out[name] = text
    return out

def arguments(f, bound):
    "The arguments of a function as nodes; without the first if it is a method."
    a = f.args
    args = a.posonlyargs + a.args
    return args[bound and bool(args):] + [o for o in (a.vararg, *a.kwonlyargs, a.kwarg) if o]

def remark(node, notes, alone):
    "What is said about an assignment: behind its first line, above it, or behind its last."
    return next((o['it'] for i in (node.lineno, node.end_lineno) if (o := docments([(i, 'it')], notes, alone))), '')

def owners(f):
    "The full names of a function, several if it is patched into several classes; none for a method that has no docstring, or a private class."
    found = patch_name(f)
    found = [found] if isinstance(found, str) else list(found)
    return [n for n in found if '.' not in n or public(n) and ast.get_docstring(f)]

class Qualify(ast.NodeTransformer):
    "Our own types in annotations get their full names, so that Sphinx knows which one is meant; it shows the short ones."
    def __init__(self, module_of): self.module_of = module_of
    def visit_Name(self, node):
        module = self.module_of(node.id)
        return ast.parse(f'{module}.{node.id}', mode='eval').body if module else node

def header(f, bound, notes, alone, typed):
    "`(a, b: int = 1) -> str` without `self`, the docments of the parameters, and that of the result."
    args = arguments(f, bound)
    places = [(o.end_lineno, o.arg) for o in args]
    last,body = max([f.lineno, *(o.end_lineno for o in args)]),f.body[0].lineno
    closing = [f.returns.end_lineno] if f.returns else [i for i in range(last+1, body) if i in notes][-1:]
    params = docments(places + [(i, 'return') for i in closing], notes, alone) if body>f.lineno else {}
    for o in args: o.annotation = typed(o.annotation)
    f.returns = typed(f.returns)
    if bound and (first := f.args.posonlyargs or f.args.args): del first[0]
    sig = f'({ast.unparse(f.args)})' + (f' -> {ast.unparse(f.returns)}' if f.returns else '')
    return sig,params,params.pop('return', '')

def fields(cls, notes, alone, typed):
    "Signature and docments of a class whose fields are its parameters."
    own = [o for o in cls.body if isinstance(o, ast.AnnAssign) and isinstance(o.target, ast.Name) and public(o.target.id)]
    sig = []
    for o in own:
        v = o.value
        if isinstance(v, ast.Call) and getattr(v.func, 'id', '')=='field':
            kw = {k.arg: k.value for k in v.keywords}
            if 'init' in kw: continue
            made = kw.get('default_factory')
            v = kw.get('default') if made is None else made.body if isinstance(made, ast.Lambda) else ast.Call(made, [], [])
        sig.append(f'{o.target.id}: {ast.unparse(typed(o.annotation))}' + (f' = {ast.unparse(v)}' if v else ''))
    return f'({", ".join(sig)})',docments([(o.end_lineno, o.target.id) for o in own], notes, alone)

class Api:
    "Markdown for the public names of exported cells; `link` turns text with `backticks` into Markdown, `module_of` knows our classes."
    def __init__(self, module, link, module_of, seen): self.module,self.link,self.types,self.seen = module,link,Qualify(module_of),seen

    def typed(self, node): return node and self.types.visit(node)

    def entry(self, kind, name, sig, doc, params=None, returns='', body='', options=()):
        "One directive; a name that was described before (another type dispatch) gets no anchor."
        options = [f':module: {self.module}', *options]
        if (self.module, name) in self.seen: options.append(':no-index:')
        self.seen.add((self.module, name))
        fence = ':'*(5 if body else 3)
        lines = [f'{fence}{{py:{kind}}} {name}{sig}', *options, '', *(self.link(o) for o in doc.split('\n')), '']
        lines += [f':param {k}: {self.link(v)}' for k,v in (params or {}).items()]
        if returns: lines.append(f':returns: {self.link(returns)}')
        return '\n'.join([*lines, '', body, fence, ''])

    def function(self, f, cls=None):
        "A function, or a method of the class called `cls`; several entries if it is patched into several classes."
        if not (names := owners(f)): return ''
        decorators = {ast.unparse(d) for d in f.decorator_list}
        method = cls or '.' in names[0]
        bound = bool(method) and 'staticmethod' not in decorators
        sig,params,result = header(f, bound, *comments(self.source), self.typed)
        kind = 'function' if not method else 'property' if any('property' in d or 'as_prop' in d for d in decorators) else 'method'
        options = [f':{o}:' for o in ('classmethod', 'staticmethod') if o in decorators]
        if isinstance(f, ast.AsyncFunctionDef): options.append(':async:')
        if kind=='property': sig,options = '',[f':type: {ast.unparse(f.returns)}'] if f.returns else []
        doc = ast.get_docstring(f) or ''
        return '\n'.join(self.entry(kind, f'{cls}.{n}' if cls else n, sig, doc, params, result, options=options) for n in names)

    def klass(self, c):
        "A class with its parameters and the public methods that have a docstring."
        notes,alone = comments(self.source)
        makers = [o for o in c.body if isinstance(o, DEFS) and o.name in ('__init__', '__new__')]
        if makers: sig,params,_ = header(makers[0], True, notes, alone, self.typed)
        else: sig,params = fields(c, notes, alone, self.typed)
        if sig=='()': sig = ''
        bases = [ast.unparse(b) for b in c.bases]
        doc = ast.get_docstring(c) or next((ast.get_docstring(m) for m in makers if ast.get_docstring(m)), '')
        if bases: doc += '\n\nExtends ' + ', '.join(f'`{b}`' for b in bases) + '.'
        methods = [o for o in c.body if isinstance(o, DEFS[:2]) and public(o.name) and o not in makers and ast.get_docstring(o)]
        return self.entry('class', c.name, sig, doc, params, body='\n'.join(self.function(m, c.name) for m in methods))

    def data(self, node):
        "Constants: an assignment to names in the open."
        names = [n.id for t in node.targets for n in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(n, ast.Name) and public(n.id)]
        note = remark(node, *comments(self.source))
        value = ast.unparse(node.value)
        options = [f':value: {value}'] if len(names)==1 and len(value)<=100 else []
        return '\n'.join(self.entry('data', n, '', note, options=options) for n in names)

    def __call__(self, source):
        "All public names of a cell."
        self.source,out = source,[]
        for node in ast.parse(source).body:
            if isinstance(node, DEFS) and not public(node.name): continue
            if isinstance(node, DEFS[:2]): out.append(self.function(node))
            elif isinstance(node, ast.ClassDef): out.append(self.klass(node))
            elif isinstance(node, ast.Assign): out.append(self.data(node))
        return '\n'.join(out)

def names(source):
    "Qualified public names that a cell defines, with the methods of its classes."
    for node in ast.parse(source).body:
        if isinstance(node, DEFS) and public(node.name):
            yield from [node.name] if isinstance(node, ast.ClassDef) else owners(node)
            if isinstance(node, ast.ClassDef): yield from (f'{node.name}.{m.name}' for m in node.body
                if isinstance(m, DEFS[:2]) and public(m.name) and m.name not in ('__init__', '__new__') and ast.get_docstring(m))
        elif isinstance(node, ast.Assign):
            yield from (n.id for t in node.targets for n in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(n, ast.Name) and public(n.id))
