package protocol

import "testing"

func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"eth0", 10, "eth0"},
		{"Zürich 上海", 20, "Zürich 上海"},
		{"a\x1b[31mb\nc\x00", 20, "a [31mb c "},
		{"safe\u202egnp.exe\u2066", 40, "safe gnp.exe "},
		{"a\xffb", 10, "a b"},
		{"上海", 4, "上"},
		{"", 0, ""},
	} {
		if got := OneLine(c.in, c.limit); got != c.want {
			t.Errorf("OneLine(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}
