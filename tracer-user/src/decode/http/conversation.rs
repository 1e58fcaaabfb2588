use super::RequestHead;
use crate::decode::json::{RequestFields, ResponseFields};
use crate::input::Direction;
#[derive(Debug, Default)]
pub struct Conversation {}
pub struct Piece<'a> { pub len: u64, pub bytes: &'a [u8], pub starts: bool }
#[derive(Debug)]
pub struct HttpEvent { pub request: u64, pub what: What }
#[derive(Debug)]
pub enum What { Started { place: u32 }, RequestHead(RequestHead), RequestComplete(RequestFields), NoRequest, ResponseHead { status: u16, stream: bool }, Chunk(ResponseFields), DoneMark, Complete(Option<ResponseFields>), EndUnseen, Gap(Direction) }
impl Conversation {
  pub fn push(&mut self, _d: Direction, _p: Piece<'_>, _s: &mut impl FnMut(HttpEvent)) {}
  pub fn lost(&mut self, _d: Direction, _b: Option<u64>, _s: &mut impl FnMut(HttpEvent)) {}
  pub fn closed(&mut self, _s: &mut impl FnMut(HttpEvent)) {}
  pub fn held_bytes(&self) -> usize { 0 }
  pub fn is_foreign(&self) -> bool { false }
  pub fn rebind(&mut self, _a: u64, _b: u64) {}
}
