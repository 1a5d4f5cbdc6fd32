// Package layering holds the rule which package may know which other one, as a
// test over 'go list -deps'. It has no code of its own.
package layering
