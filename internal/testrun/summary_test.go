package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// feed plays lines of go test -json.
func feed(lines string) (*summary, *bytes.Buffer) {
	var out bytes.Buffer
	s := newSummary(&out, false)
	for l := range strings.Lines(lines) {
		s.line([]byte(l))
	}
	s.flush()
	return s, &out
}

const passing = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- PASS: TestA (0.10s)\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"=== RUN   TestRoot\n"}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"    a_test.go:7: needs root: makes namespaces\n"}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"--- SKIP: TestRoot (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestRoot","Elapsed":0}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.2s\n"}
{"Action":"pass","Package":"p","Elapsed":0.2}
{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}
{"Action":"skip","Package":"q","Elapsed":0}
`

func TestClosingLinesAndSkips(t *testing.T) {
	s, out := feed(passing)
	require.Equal(t, "ok  \tp\t0.2s\n?   \tq\t[no test files]\n", out.String())
	require.Zero(t, s.failed())
	require.Equal(t, map[testID]string{{"p", "TestRoot"}: "needs root: makes namespaces"}, s.skips)
	out.Reset()
	s.report()
	require.Equal(t, "skipped, needs root: makes namespaces:\n  p.TestRoot\n1 packages: 1 tests passed, 0 failed, 1 skipped\n", out.String())
}

func TestFailures(t *testing.T) {
	for name, tc := range map[string]struct{ lines, want string }{
		"test": {`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p","Elapsed":0.1}
`, "    a_test.go:3: wrong\nFAIL\tp\t0.1s\n"},
		"panic": {`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"p","Elapsed":0.1}
`, "panic: test timed out\n"},
		"build": {`{"ImportPath":"p","Action":"build-output","Output":"p/a.go:1: syntax error\n"}
{"ImportPath":"p","Action":"build-fail"}
`, "p/a.go:1: syntax error\n"},
		"go itself killed": {`{"Action":"output","Package":"p","Test":"TestA","Output":"half\n"}
`, "half\n"},
		"no event": {"go: cannot find module\n", "go: cannot find module\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s, out := feed(tc.lines)
			require.Equal(t, tc.want, out.String())
			if strings.Contains(tc.lines, "fail") {
				require.Equal(t, 1, s.failed())
			}
		})
	}
}

func TestResults(t *testing.T) {
	s, _ := feed(passing + passing)
	r := s.results([]string{"./..."}, 2, time.Now())
	require.Equal(t, 2, r.Passed)
	require.Equal(t, 2, r.Skipped)
	require.Equal(t, []testResult{{"p", "TestA", 2, 0, 0, 0.1}, {"p", "TestRoot", 0, 0, 2, 0}}, r.Tests)
	require.NotEmpty(t, r.Go)
}

func TestFiguresOfAllRuns(t *testing.T) {
	var lines strings.Builder
	for _, v := range []string{"0.400", "0.100", "1.000", "0.200"} {
		lines.WriteString(`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: measured longest-gap:-x ` + v + ` s\n"}` + "\n")
	}
	lines.WriteString(`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: measured nothing\n"}` + "\n")
	s, _ := feed(lines.String())
	require.Equal(t, []figure{{"longest-gap:-x", 4, 0.2, 1, 1}}, s.figures())
}

func TestSlowest(t *testing.T) {
	s, out := feed(passing + `{"Action":"pass","Package":"causeway/p","Test":"TestSlow","Elapsed":61.4}
{"Action":"pass","Package":"causeway/p","Test":"TestSlow/x","Elapsed":60}
{"Action":"pass","Package":"causeway/p","Test":"TestMiddle","Elapsed":7}
`)
	require.Equal(t, []string{"p.TestSlow 61 s", "p.TestMiddle 7 s"}, s.slowest(5))
	require.Equal(t, []string{"p.TestSlow 61 s"}, s.slowest(1))
	out.Reset()
	s.report()
	require.Contains(t, out.String(), "slowest: p.TestSlow 61 s, p.TestMiddle 7 s\n")
}
