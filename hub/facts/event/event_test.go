package event

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNewestFirst(t *testing.T) {
	var l Log
	require.Empty(t, l.Newest(5))
	for i := range 2*size + 3 {
		l.Add(NodeUp, "", strconv.Itoa(i))
		got := l.Newest(2)
		require.Equal(t, strconv.Itoa(i), got[0].Message)
		if i > 0 {
			require.Equal(t, strconv.Itoa(i-1), got[1].Message)
		}
	}
	require.Len(t, l.Newest(10*size), size)
	require.Equal(t, uint64(2*size+3), l.Count(NodeUp))
}

// What one node causes pushes out nobody else's.
func TestOneNodeHasItsShare(t *testing.T) {
	var l Log
	for i := range 10 {
		l.Add(NodeUp, "quiet", strconv.Itoa(i))
		l.Add(JoinRefused, "", strconv.Itoa(i))
	}
	for i := range 3 * size {
		l.Add(NodeRefused, "loud", strconv.Itoa(i))
	}
	n := map[string]int{}
	for _, e := range l.Newest(size) {
		n[e.Node]++
	}
	require.Equal(t, map[string]int{"quiet": 10, "": 10, "loud": perNode}, n)
	require.Equal(t, n, l.nodes)
	require.Equal(t, strconv.Itoa(3*size-1), l.Newest(1)[0].Message)
	for i := range 2 * size {
		l.Add(NodeUp, strconv.Itoa(i), "")
	}
	require.Len(t, l.nodes, size)
}

// Every constant of a kind is one of Kinds.
func TestKindsAreAll(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	require.NoError(t, err)
	var all []string
	ast.Inspect(f, func(n ast.Node) bool {
		d, ok := n.(*ast.GenDecl)
		if !ok || d.Tok != token.CONST {
			return true
		}
		for _, s := range d.Specs {
			for _, v := range s.(*ast.ValueSpec).Values {
				if l := v.(*ast.BasicLit); l.Kind == token.STRING {
					text, err := strconv.Unquote(l.Value)
					require.NoError(t, err)
					all = append(all, text)
				}
			}
		}
		return false
	})
	require.ElementsMatch(t, all, Kinds)
}
