"""Graphs that pattern walks get wrong: a model as text, and which slots of it must go together."""

MODELS = {
    "one tensor twice in a Concat": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[8, 2] v> {
            a = MatMul (x, w)
            b = Concat <axis = 1> (a, a)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcdabcd"},
    ),
    "a Slice backwards": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[4, 2] v, int64[1] s = {-1}, int64[1] e = {-99}, int64[1] a1 = {1},
            int64[1] t = {-1}> {
            a = MatMul (x, w)
            b = Slice (a, s, e, a1, t)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "dcba"},
    ),
    "a Slice with steps": (
        """
        g (float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
        <float[3, 5] w, float[3, 2] v, float[5, 2] u, int64[1] s = {0}, int64[1] e = {99},
            int64[1] a1 = {1},
         int64[1] t = {2}> {
            a = MatMul (x, w)
            b = Slice (a, s, e, a1, t)
            y = MatMul (b, v)
            z = MatMul (a, u)
        }""",
        {"w[1]": "abcde", "v[0]": "ace", "u[0]": "abcde"},
    ),
    "a Pad that cuts and adds": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 5] w, float[6, 2] v, int64[4] p = {0, -1,
            0, 2}> {
            a = MatMul (x, w)
            b = Pad (a, p)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcde", "v[0]": "bcdefg"},
    ),
    "a Split into unequal parts": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 7] w, float[2, 2] u, float[2, 2] v, float[3, 2] t, int64[3] s = {2, 2, 3}> {
            a = MatMul (x, w)
            b, c, d = Split <axis = 1> (a, s)
            e = Mul (b, c)
            f = MatMul (e, u)
            h = MatMul (d, t)
            y = Add (f, h)
        }""",
        {"w[1]": "ababcde", "u[0]": "ab", "t[0]": "cde"},
    ),
    "indices that repeat": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[5, 2] v, int64[5] i = {3, 0,
            0, 1, -1}> {
            a = MatMul (x, w)
            b = Gather <axis = 1> (a, i)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "daabd"},
    ),
    "copies along channels": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[8, 2] v, int64[2] r = {1, 2}> {
            a = MatMul (x, w)
            b = Tile (a, r)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcdabcd"},
    ),
    "a channel axis made by Expand": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 1] w, float[4] b, float[4, 2] v, int64[2] s = {1, 4}> {
            a = MatMul (x, w)
            c = Expand (a, s)
            d = Add (c, b)
            y = MatMul (d, v)
        }""",
        {"b[0]": "abcd", "v[0]": "abcd"},
    ),
    "a weight used both ways": (
        """
        g (float[N, 4] x) => (float[N, 4] y) <float[4, 6] w> {
            a = MatMul (x, w)
            t = Transpose <perm = [1, 0]> (w)
            b = Relu (a)
            y = MatMul (b, t)
        }""",
        {"w[0]": "....", "w[1]": "abcdef"},
    ),
    "batch and channels in one axis": (
        """
        g (float[N, 3, 4] x) => (float[N, 3, 2] y)
        <float[4, 6] w, float[6, 2] v, int64[2] s = {-1, 6}, int64[3] t = {-1, 3, 2},
            int64[1] m = {-1},
         int64[2] n = {-1, 6}> {
            a = MatMul (x, w)
            f = Reshape (a, m)
            b = Reshape (f, s)
            c = MatMul (b, v)
            y = Reshape (c, t)
        }""",
        {"w[1]": "abcdef", "v[0]": "abcdef"},
    ),
    "sizes that are equal by chance": (
        """
        g (float[6, 6, 6] x) => (float[6, 6, 6] y)
        <float[6, 6] w, float[6, 6] v, float[6] b, int64[2] s = {36, 6}, int64[3] t = {6, 6, 6}> {
            a = MatMul (x, w)
            b1 = Add (a, b)
            c = Reshape (b1, s)
            d = MatMul (c, v)
            y = Reshape (d, t)
        }""",
        {"w[1]": "abcdef", "b[0]": "abcdef", "v[0]": "abcdef", "w[0]": "......"},
    ),
    "no rows at all": (
        """
        g (float[0, 3] x, float[N, 3] z) => (float[0, 2] y, float[N, 2] u)
        <float[3, 4] w, float[4, 2] v, float[4, 2] t> {
            a = MatMul (x, w)
            y = MatMul (a, v)
            b = MatMul (z, w)
            u = MatMul (b, t)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd", "t[0]": "abcd"},
    ),
    "opset 7": (
        """
        <ir_version: 4, opset_import: ["" : 7]>
        g (float[N, 3, 8, 8] x) => (float[N, 2] y)
        <float[6, 3, 3, 3] w, float[6] s, float[6] b, float[6] m, float[6] q, float[6, 1, 3, 3] d,
         float[2, 2] v, float[2] c> {
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
            e = BatchNormalization (a, s, b, m, q)
            f = Conv <kernel_shape = [3, 3], group = 6> (e, d)
            h, i, j = Split <axis = 1, split = [2, 2, 2]> (f)
            k = Add (h, i)
            l = Slice <axes = [1], starts = [0], ends = [2]> (k)
            n = GlobalAveragePool (l)
            o = Flatten (n)
            y = Gemm <transB = 1> (o, v, c)
        }""",
        {"d[0]": "ababcd", "v[1]": "ab"},
    ),
    "weights inside Constant nodes": (
        """
        g (float[N, 2] x) => (float[N, 1] y) {
            w = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()
            v = Constant <value = float[3, 1] {1, -2, 3}> ()
            a = MatMul (x, w)
            b = Tanh (a)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abc", "v[0]": "abc"},
    ),
    "slopes per channel": (
        """
        g (float[N, 3, 5, 5] x) => (float[N, 2, 5, 5] y)
        <float[4, 3, 1, 1] w, float[4, 1, 1] s, float[2, 4, 1, 1] v, bool[1, 4, 1, 1] m = {1, 0,
            1, 1},
         float o = {0.5}> {
            a = Conv (x, w)
            b = PRelu (a, s)
            c = Where (m, b, o)
            y = Conv (c, v)
        }""",
        {"w[0]": "abcd", "s[0]": "abcd", "m[1]": "abcd", "v[1]": "abcd"},
    ),
    "vectors": (
        """
        g (float[3] x) => (float y, float[2] z) <float[3, 4] w, float[4] v, float[4, 2] u> {
            a = MatMul (x, w)
            y = MatMul (a, v)
            z = MatMul (a, u)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd", "u[0]": "abcd"},
    ),
    "Gemm of a transposed input": (
        """
        g (float[3, N] x) => (float[N, 2] y) <float[3, 4] w, float[1, 4] c, float[4, 2] v,
            float e = {0.5}> {
            a = Gemm <transA = 1, alpha = 0.5> (x, w, c)
            b = Transpose (a)
            y = Gemm <transA = 1, beta = 2.0> (b, v, e)
        }""",
        {"w[1]": "abcd", "c[1]": "abcd", "v[0]": "abcd"},
    ),
    "groups and a dynamic batch": (
        """
        g (float[N, 4, L] x) => (float[N, 2, M] y)
        <float[8, 4, 3] w, float[4, 2, 3] g1, float[2, 4, 1] v> {
            a = Conv <auto_pad = "SAME_UPPER", strides = [2]> (x, w)
            b = Conv <group = 4, pads = [1, 1]> (a, g1)
            y = Conv (b, v)
        }""",
        {"w[0]": "aabbccdd", "g1[0]": "abcd", "v[1]": "abcd"},
    ),
    "three dimensions": (
        """
        g (float[N, 2, 4, 4, 4] x) => (float[N, 2, 8, 8, 8] y)
        <float[6, 2, 1, 1, 1] w, float[6, 2, 2, 2, 2] t, float[4] b, float[2, 4, 1, 1, 1] v> {
            a = Conv (x, w)
            c = ConvTranspose <group = 2, strides = [2, 2, 2]> (a, t, b)
            y = Conv (c, v)
        }""",
        {
            "w[0]": "abcabc",
            "t[0]": "abcabc",
            "t[1]": "de",
            "b[0]": "dede",
            "v[1]": "dede",
        },
    ),
    "an output that is also read": (
        """
        g (float[N, 3] x) => (float[N, 4] y, float[N, 2] z) <float[3, 4] w, float[4, 5] v,
            float[5, 2] u> {
            y = MatMul (x, w)
            a = MatMul (y, v)
            z = MatMul (a, u)
        }""",
        {"w[1]": "....", "v[0]": "....", "v[1]": "abcde", "u[0]": "abcde"},
    ),
    "a square weight whose axes are one": (
        """
        g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w, float[4, 4] v, float[4, 4] u> {
            a = MatMul (x, w)
            b = MatMul (a, v)
            c = Add (a, b)
            y = MatMul (c, u)
        }""",
        {
            "w[1]": "abcd",
            "v[0]": "abcd",
            "v[1]": "abcd",
            "u[0]": "abcd",
            "u[1]": "....",
        },
    ),
    "a shape read off the channels": (
        """
        g (float[N, 3, 4, 4] x) => (float[N, 2] y)
        <float[4, 3, 1, 1] w, float[64, 2] v, int64[1] one = {1}, int64[1] m = {-1}, int64 c1 = {1},
         int64 c2 = {2}, int64 c3 = {3}, int64 c0 = {0}> {
            a = Conv (x, w)
            s = Shape (a)
            n0 = Gather (s, c0)
            n1 = Gather (s, c1)
            n2 = Gather (s, c2)
            n3 = Gather (s, c3)
            p1 = Mul (n1, n2)
            p = Mul (p1, n3)
            u0 = Unsqueeze (n0, c0)
            u1 = Unsqueeze (p, c0)
            r = Concat <axis = 0> (u0, u1)
            b = Reshape (a, r)
            y = MatMul (b, v)
        }""",
        {"w[0]": "abcd", "v[0]": "a" * 16 + "b" * 16 + "c" * 16 + "d" * 16},
    ),
    "channels shuffled": (
        """
        g (float[N, 3, 2, 2] x) => (float[N, 2, 2, 2] y)
        <float[4, 3, 1, 1] w, float[2, 4, 1, 1] v, int64[5] s = {0, 2, 2, 2, 2},
            int64[4] t = {0, 4, 2, 2}> {
            a = Conv (x, w)
            b = Reshape (a, s)
            c = Transpose <perm = [0, 2, 1, 3, 4]> (b)
            d = Reshape (c, t)
            e = Conv (d, v)
            y = Relu (e)
        }""",
        {"w[0]": "abab", "v[1]": "aabb"},
    ),
    "space from depth": (
        """
        g (float[N, 3, 2, 2] x) => (float[N, 2, 4, 4] y) <float[8, 3, 1, 1] w, float[2, 2, 1,
            1] v> {
            a = Conv (x, w)
            b = DepthToSpace <blocksize = 2, mode = "CRD"> (a)
            y = Conv (b, v)
        }""",
        {"w[0]": "aaaabbbb", "v[1]": "ab"},
    ),
    "max of a channel": (
        """
        g (float[N, 3, 2] x) => (float[N, 2, 2] y) <float[3, 4] w, float[4, 2] v,
            int64[1] two = {2}> {
            t = Transpose <perm = [0, 2, 1]> (x)
            a = MatMul (t, w)
            m = ReduceMax <keepdims = 1> (a, two)
            s = ReduceSum <keepdims = 1> (a, two)
            b = Sub (a, m)
            c = Div (b, s)
            y = MatMul (c, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "a scale computed from a width": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[4, 2] v, int64 one = {1}> {
            a = MatMul (x, w)
            s = Shape (a)
            n = Gather (s, one)
            f = Cast <to = 1> (n)
            r = Sqrt (f)
            b = Div (a, r)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "a scalar for every channel": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float s, float[1] t, float[1, 1] u,
            float[4, 2] v> {
            a = MatMul (x, w)
            b = Mul (a, s)
            c = Add (b, t)
            d = Sub (c, u)
            y = MatMul (d, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
}
