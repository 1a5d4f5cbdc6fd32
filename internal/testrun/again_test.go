package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const failing = `{"Action":"output","Package":"p","Test":"TestB/x","Output":"    a_test.go:3: too late\n"}
{"Action":"fail","Package":"p","Test":"TestB/x","Elapsed":0.1}
{"Action":"fail","Package":"p","Test":"TestB","Elapsed":0.1}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p","Elapsed":0.1}
`

func TestOnceMore(t *testing.T) {
	s, out := feed(passing + failing)
	require.Equal(t, map[string][]string{"p": {"TestB"}}, s.again(1))
	require.Empty(t, s.again(0), "too many")
	s.pardon("p", []string{"TestB"})
	require.Zero(t, s.failed())
	out.Reset()
	s.report()
	require.Contains(t, out.String(), "passed in a second run only, mend them:\n  p.TestB\n")
}

func TestNeverOnceMore(t *testing.T) {
	for name, lines := range map[string]string{
		"data race":                   `{"Action":"output","Package":"p","Test":"TestB","Output":"WARNING: DATA RACE\n"}` + "\n" + failing,
		"race told outside of a test": `{"Action":"output","Package":"p","Output":"WARNING: DATA RACE\n"}` + "\n" + failing,
		"panic":                       `{"Action":"output","Package":"p","Test":"TestB","Output":"panic: nil map\n"}` + "\n" + failing,
		"counts what was lost":        `{"Action":"output","Package":"p","Test":"TestB/x","Output":"    x_test.go:9: no second run: it counts packets\n"}` + "\n" + failing,
		"package alone":               failing + `{"Action":"fail","Package":"q","Elapsed":0.1}` + "\n",
		"build":                       failing + `{"ImportPath":"q","Action":"build-fail"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := feed(passing + lines)
			require.Empty(t, s.again(10))
			require.Positive(t, s.failed())
		})
	}
}

func TestOnlyThese(t *testing.T) {
	require.Equal(t, []string{"-count=1", "-run", ".", "-run", "^(TestA|TestB)$", "causeway/e2e"}, onlyThese([]string{"-count=1", "-run", ".", "./e2e/..."}, "causeway/e2e", []string{"TestA", "TestB"}))
	require.Equal(t, []string{"-race", "-timeout", "6m", "-run", "^(TestA)$", "causeway/hub"}, onlyThese([]string{"-race", "-timeout", "6m", "causeway/agent", "causeway/hub"}, "causeway/hub", []string{"TestA"}))
}
